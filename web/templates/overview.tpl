% rebase("layout.tpl")
<div class="heading">
  <h1>Units</h1>
  <p id="summary" class="hint"></p>
</div>
<section id="found" class="panel found" aria-label="Units found" hidden></section>
<div id="pages" class="row pages" hidden></div>
<div id="cards" class="cards" aria-busy="true"></div>
<section id="charts" aria-label="Charts">
  <div class="heading">
    <h2>Charts</h2>
    <label class="inline">of <select id="scope"></select></label>
  </div>
</section>
