// Purpose: a time series of bounded size for drawing: bins of one width on a common grid, each with minimum, maximum
// and mean, so that a spike of one reading is still seen when a week is on the screen.

export class BinnedSeries {
  /** Synchronization: none; width in seconds, size is the number of bins kept. */
  constructor(width, size) {
    this.width = width;
    this.size = size;
    this.head = -1; // number of the newest bin, counted from the epoch
    this.low = new Float64Array(size);
    this.high = new Float64Array(size);
    this.sum = new Float64Array(size);
    this.count = new Float64Array(size);
    this.last = -Infinity; // time of the newest datum
  }

  /** Make room up to bin `head`; the oldest bins are forgotten. */
  advance(head) {
    if (head <= this.head) return;
    const first = Math.max(this.head + 1, head - this.size + 1);
    for (let bin = first; bin <= head; bin++) this.count[bin % this.size] = 0;
    this.head = head;
  }

  add(t, low, high, mean) {
    if (!Number.isFinite(mean)) return;
    const bin = Math.floor(t / this.width);
    this.advance(bin);
    if (bin <= this.head - this.size) return;
    const i = bin % this.size;
    const fresh = this.count[i] === 0;
    this.low[i] = fresh ? low : Math.min(this.low[i], low);
    this.high[i] = fresh ? high : Math.max(this.high[i], high);
    this.sum[i] = fresh ? mean : this.sum[i] + mean;
    this.count[i] += 1;
    if (t > this.last) this.last = t;
  }

  /** Add a series as /api/readings sends it; without low and high the mean stands for them. */
  addAll({ t, low, high, mean }) {
    for (let i = 0; i < t.length; i++) {
      if (mean[i] !== null) this.add(t[i], low?.[i] ?? mean[i], high?.[i] ?? mean[i], mean[i]);
    }
  }

  /** Columns low, high and mean for bins first..last, null where nothing was measured. */
  columns(first, last) {
    const low = [];
    const high = [];
    const mean = [];
    for (let bin = first; bin <= last; bin++) {
      const i = ((bin % this.size) + this.size) % this.size;
      const here = bin <= this.head && bin > this.head - this.size && this.count[i] > 0;
      low.push(here ? this.low[i] : null);
      high.push(here ? this.high[i] : null);
      mean.push(here ? this.sum[i] / this.count[i] : null);
    }
    return { low, high, mean };
  }
}
