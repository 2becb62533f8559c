% rebase("layout.tpl")
<section class="panel login">
  <h1>Log in</h1>
% if get("message", ""):
  <p class="alert" role="alert">{{message}}</p>
% end
  <form id="login">
    <label for="password">Password</label>
    <input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
    <button type="submit">Log in</button>
    <output id="login-answer" class="answer" for="password"></output>
  </form>
  <p class="hint">The leader prints a one-time link when it starts. Each link opens one session and then is used up.</p>
</section>
