// Purpose: the login form, and words for a one-time link that no longer works.

import { post } from "./api.js";
import { $, act } from "./dom.js";

const LINKS = {
  used: "This one-time link has been used already. Log in with the password, or ask the leader for a new link.",
  expired: "This one-time link has expired. Log in with the password, or ask the leader for a new link.",
  invalid: "This link is not known to the leader. Log in with the password, or ask the leader for a new link.",
};

const why = new URLSearchParams(location.search).get("link");
if (why in LINKS) {
  $("#link-message").textContent = LINKS[why];
  $("#link-message").hidden = false;
}

$("#login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const work = async () => {
    await post("/api/login", { password: form.password.value });
    return "logged in";
  };
  if (await act($("button", form), $("#login-answer"), work, "checking …")) location.assign("/");
  else form.password.select();
});
