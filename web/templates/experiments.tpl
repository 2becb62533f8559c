% rebase("layout.tpl")
<h1>Experiments</h1>
<form id="create" class="panel create">
  <h2>New experiment</h2>
  <label>Name <input name="name" required maxlength="100" autocomplete="off"></label>
  <label>Description <input name="description" maxlength="1000" autocomplete="off"></label>
  <button type="submit">Create</button>
  <output id="create-answer" class="answer"></output>
</form>
<div id="experiments" class="stack" aria-busy="true"></div>
