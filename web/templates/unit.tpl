% rebase("layout.tpl")
<div class="heading">
  <h1>{{unit}}</h1>
  <span id="label" class="inline"></span>
  <span id="tags" class="flags"></span>
  <span id="state" class="state" data-state="unknown">…</span>
  <span id="simulated" class="badge" title="Numbers come from a simulated vial" hidden>simulated</span>
  <span id="foreign" class="badge" title="Not a stirbar unit: it is shown and stored as far as the broker delivers it, and takes no commands from here" hidden>foreign</span>
  <span id="badges" class="flags"></span>
</div>
<p id="protection" class="hint" hidden></p>
<div id="now" class="now" aria-label="Readings now"></div>
<nav class="sections" aria-label="Sections of this page">
  <a href="#charts">Charts</a> <a href="#controls">Controls</a> <a href="#scope">Oscilloscope</a>
  <a href="#loop">Loop</a> <a href="#computer">Computer</a> <a href="#simulation" id="simulation-link" hidden>Simulation</a>
</nav>
<section id="charts" aria-label="Charts"></section>
<section id="controls">
  <h2>Controls</h2>
  <div id="control-panels" class="panels"></div>
</section>
<section id="scope">
  <h2>Oscilloscope</h2>
</section>
<section id="loop">
  <h2>Loop</h2>
</section>
<section id="computer">
  <h2>Computer</h2>
  <p id="figures" class="flags"></p>
</section>
<section id="simulation" hidden>
  <h2>Simulation</h2>
</section>
