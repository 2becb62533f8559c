// Purpose: what every page behind the login has: the live connection, logging out, errors that nobody caught.

import { post } from "./api.js";
import { notice, reason } from "./dom.js";
import { start } from "./live.js";

/** Run a page: `main` loads it; what it throws is shown at the top, with a button's worth of advice. */
export async function page(main, unit) {
  document.getElementById("logout").addEventListener("click", async () => {
    try {
      await post("/api/logout");
      location.assign("/login");
    } catch (error) {
      notice(`Not logged out: ${reason(error)}`);
    }
  });
  addEventListener("unhandledrejection", (event) => notice(`Something failed: ${reason(event.reason)}`));
  start(unit);
  try {
    await main();
  } catch (error) {
    notice(`This page could not be loaded: ${reason(error)} · reload it to try again`);
  }
}
