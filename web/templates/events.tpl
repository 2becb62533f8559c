% rebase("layout.tpl")
<div class="heading">
  <h1>Events</h1>
  <label class="inline">of <select id="unit"><option value="">all units</option></select></label>
  <label class="inline">from level <select id="level">
    <option value="debug">debug</option><option value="info" selected>info</option>
    <option value="notice">notice</option><option value="warning">warning</option><option value="error">error</option>
  </select></label>
</div>
<div class="table-wrap panel">
  <table class="events">
    <thead><tr><th scope="col">Time</th><th scope="col">Level</th><th scope="col">Unit</th><th scope="col">Source</th><th scope="col">Message</th></tr></thead>
    <tbody id="events" aria-busy="true"></tbody>
  </table>
</div>
<p class="row"><button id="older" type="button" class="quiet">Show older</button> <output id="events-answer" class="answer"></output></p>
