// Purpose: draw soon and all at once, in an animation frame, however many messages come, and never so often that
// drawing takes more than a tenth of the page's time. A hidden page draws nothing.

const SHORTEST_MS = 30;
const SHARE = 0.1;
const jobs = new Set();
let pending = false;
let last = -Infinity;
let period = SHORTEST_MS;

function run() {
  const start = performance.now();
  pending = false;
  last = start;
  const due = [...jobs];
  jobs.clear();
  for (const job of due) {
    try {
      job();
    } catch (error) {
      console.error(error); // one broken drawing must not stop the others
    }
  }
  period = Math.max(SHORTEST_MS, (performance.now() - start) / SHARE);
}

/** Ask for `job` to be called in the next drawing; asking twice calls it once. */
export function redraw(job) {
  jobs.add(job);
  if (pending) return;
  pending = true;
  const wait = last + period - performance.now();
  if (wait <= 0) requestAnimationFrame(run);
  else setTimeout(() => requestAnimationFrame(run), wait);
}
