% rebase("layout.tpl")
<div class="heading">
  <h1>Nodes</h1>
  <p>The units as computers: who is there, what people call them, how they are.</p>
  <label class="row">Tag <select id="tag"></select></label>
  <span id="summary" class="hint" role="status"></span>
</div>
<div class="table-wrap panel">
  <table class="nodes">
    <thead><tr><th scope="col">Unit</th><th scope="col">State</th><th scope="col">Experiment and label</th><th scope="col">Tags</th><th scope="col">Computer</th><th scope="col">Do</th></tr></thead>
    <tbody id="nodes" aria-busy="true"></tbody>
  </table>
</div>
<section id="history">
  <h2>Assignments</h2>
  <div class="table-wrap panel">
    <table class="assignments">
      <thead><tr><th scope="col">Unit</th><th scope="col">Experiment</th><th scope="col">Label</th><th scope="col">From</th><th scope="col">Until</th></tr></thead>
      <tbody id="assignments"></tbody>
    </table>
  </div>
</section>
