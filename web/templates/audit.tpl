% rebase("layout.tpl")
<div class="heading">
  <h1>Audit</h1>
  <p>Who asked for what, and what came of it: on this leader, by page, token or command line.</p>
</div>
<div class="table-wrap panel">
  <table class="events">
    <thead><tr><th scope="col">Time</th><th scope="col">Who</th><th scope="col">From</th><th scope="col">Unit</th><th scope="col">What</th><th scope="col">Result</th></tr></thead>
    <tbody id="audit" aria-busy="true"></tbody>
  </table>
</div>
<p class="row"><button id="older" type="button" class="quiet">Show older</button> <output id="audit-answer" class="answer"></output></p>
