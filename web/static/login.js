// Purpose: the login form. What became of a one-time link is said by the server above it.

import { post } from "./api.js";
import { $, act } from "./dom.js";

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
