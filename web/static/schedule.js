// Purpose: draw at most five times a second, all at once, in an animation frame, however many messages come.
// The first message after a pause is drawn in the next frame; a hidden page draws nothing.

const PERIOD_MS = 200;
const jobs = new Set();
let pending = false;
let last = -Infinity;

function run(now) {
  pending = false;
  last = now;
  const due = [...jobs];
  jobs.clear();
  for (const job of due) {
    try {
      job();
    } catch (error) {
      console.error(error); // one broken drawing must not stop the others
    }
  }
}

/** Ask for `job` to be called in the next drawing; asking twice calls it once. */
export function redraw(job) {
  jobs.add(job);
  if (pending) return;
  pending = true;
  const wait = last + PERIOD_MS - performance.now();
  if (wait <= 0) requestAnimationFrame(run);
  else setTimeout(() => requestAnimationFrame(run), wait);
}
