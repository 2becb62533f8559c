% rebase("layout.tpl")
<div class="heading">
  <h1>Configuration</h1>
  <p class="hint">What the leader distributes, above the files of each machine; a unit's own text is above that for all.</p>
</div>
<section class="panel config-editor" aria-label="Editor">
  <div class="row">
    <label class="inline">for <select id="scope"></select></label>
    <span id="version" class="hint"></span>
  </div>
  <textarea id="text" rows="18" spellcheck="false" autocomplete="off" aria-label="Text of the configuration" aria-busy="true"></textarea>
  <div class="row">
    <button id="save" type="button">Save and distribute</button>
    <button id="check" type="button" class="quiet">Check</button>
    <button id="reload" type="button" class="quiet">Throw changes away</button>
    <output id="config-answer" class="answer"></output>
  </div>
  <ul id="problems" class="problems" role="alert" hidden></ul>
</section>
<section class="panel">
  <h2>Units</h2>
  <div class="table-wrap">
    <table>
      <thead><tr><th scope="col">Unit</th><th scope="col">State</th><th scope="col">Version</th><th scope="col">Where it differs</th><th scope="col"></th></tr></thead>
      <tbody id="units" aria-busy="true"></tbody>
    </table>
  </div>
</section>
<section class="panel">
  <h2>History</h2>
  <div class="table-wrap">
    <table>
      <thead><tr><th scope="col">Version</th><th scope="col">Time</th><th scope="col">Who</th><th scope="col"></th></tr></thead>
      <tbody id="history" aria-busy="true"></tbody>
    </table>
  </div>
  <pre id="diff" class="diff" tabindex="0" aria-label="Difference" hidden></pre>
</section>
