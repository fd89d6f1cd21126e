"use strict";

/* The metric of a plane from a table.

   The table holds the coefficients of uniform cubic B-splines for s, d and b, the parts of the
   logarithm of the metric: log G = s I + [[d, b], [b, -d]]. Its exponential is positive definite
   wherever one looks. The same formulas stand in riemae/reporting/lattice.py.

   A coordinate with a period comes round: the table covers one period, and is asked anywhere. */

/** Numbers that were packed as base64. */
function unpack(text, Kind) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new Kind(bytes.buffer);
}

/** The four B-splines that are not 0 in a cell, and two derivatives, at share u of it. */
function splineWeights(u, out) {
  const v = 1 - u;
  out[0] = (v * v * v) / 6;
  out[1] = (3 * u * u * u - 6 * u * u + 4) / 6;
  out[2] = (3 * v * v * v - 6 * v * v + 4) / 6;
  out[3] = (u * u * u) / 6;
  out[4] = (-v * v) / 2;
  out[5] = (3 * u * u - 4 * u) / 2;
  out[6] = (-3 * v * v + 4 * v) / 2;
  out[7] = (u * u) / 2;
  out[8] = v;
  out[9] = 3 * u - 2;
  out[10] = 3 * v - 2;
  out[11] = u;
}

/** The remainder that is not negative. */
function modulo(x, n) {
  return x - n * Math.floor(x / n);
}

/** The same point inside one period. */
function home(lattice, point) {
  return point.map((value, a) => {
    const period = lattice.periods[a];
    return period ? lattice.low[a] + modulo(value - lattice.low[a], period) : value;
  });
}

/** The copy of a point that is the nearest to another one. */
function nearestCopy(periods, point, other) {
  return point.map((value, a) => {
    const period = periods[a];
    return period ? value - period * Math.round((value - other[a]) / period) : value;
  });
}

class MetricTable {
  constructor(table) {
    this.low = table.low;
    this.high = table.high;
    this.counts = table.counts;
    this.periods = table.periods;
    this.steps = [0, 1].map((a) => (this.high[a] - this.low[a]) / (this.counts[a] - 1));
    this.center = table.center;
    this.coefficients = Float64Array.from(unpack(table.coefficients, Float32Array));
    this.defined = unpack(table.defined, Uint8Array);
    this.complete = this.defined.every((known) => known);
    this.wx = new Float64Array(12);
    this.wy = new Float64Array(12);
    this.jet = new Float64Array(18);
    this.g = new Float64Array(3);
  }

  /** A coordinate in steps from the first node. */
  place(value, axis) {
    const at = (value - this.low[axis]) / this.steps[axis];
    return this.periods[axis] ? modulo(at, this.counts[axis] - 1) : at;
  }

  /** Whether the metric is known around a point: at all four corners of its cell. */
  inside(x, y) {
    const a = this.place(x, 0);
    const b = this.place(y, 1);
    const [nx, ny] = this.counts;
    if (!(a >= -1e-9 && b >= -1e-9 && a <= nx - 1 + 1e-9 && b <= ny - 1 + 1e-9)) return false;
    if (this.complete) return true;
    const i = Math.min(Math.max(Math.floor(a), 0), nx - 2);
    const j = Math.min(Math.max(Math.floor(b), 0), ny - 2);
    const at = i * ny + j;
    const known = this.defined;
    return Boolean(known[at] && known[at + 1] && known[at + ny] && known[at + ny + 1]);
  }

  /** s, d and b with their derivatives: for each channel value, x, y, xx, xy, yy. */
  expand(x, y, order) {
    const [nx, ny] = this.counts;
    const a = this.place(x, 0);
    const b = this.place(y, 1);
    const i = Math.min(Math.max(Math.floor(a), 0), nx - 2);
    const j = Math.min(Math.max(Math.floor(b), 0), ny - 2);
    const { wx, wy, jet, coefficients } = this;
    splineWeights(a - i, wx);
    splineWeights(b - j, wy);
    jet.fill(0);
    const width = ny + 2;
    for (let p = 0; p < 4; p++) {
      for (let q = 0; q < 4; q++) {
        const at = 3 * ((i + p) * width + j + q);
        const value = wx[p] * wy[q];
        for (let c = 0; c < 3; c++) jet[6 * c] += value * coefficients[at + c];
        if (order === 0) continue;
        const dx = wx[4 + p] * wy[q];
        const dy = wx[p] * wy[4 + q];
        const dxx = wx[8 + p] * wy[q];
        const dxy = wx[4 + p] * wy[4 + q];
        const dyy = wx[p] * wy[8 + q];
        for (let c = 0; c < 3; c++) {
          const coefficient = coefficients[at + c];
          jet[6 * c + 1] += dx * coefficient;
          jet[6 * c + 2] += dy * coefficient;
          jet[6 * c + 3] += dxx * coefficient;
          jet[6 * c + 4] += dxy * coefficient;
          jet[6 * c + 5] += dyy * coefficient;
        }
      }
    }
    const [hx, hy] = this.steps;
    for (let c = 0; c < 3; c++) {
      jet[6 * c] += this.center[c];
      jet[6 * c + 1] /= hx;
      jet[6 * c + 2] /= hy;
      jet[6 * c + 3] /= hx * hx;
      jet[6 * c + 4] /= hx * hy;
      jet[6 * c + 5] /= hy * hy;
    }
    return jet;
  }

  /** The metric at a point: g11, g12, g22. The array is used again by the next call. */
  metric(x, y) {
    const jet = this.expand(x, y, 0);
    const d = jet[6];
    const b = jet[12];
    const r = Math.hypot(d, b);
    const size = Math.exp(jet[0]);
    const odd = size * (r > 1e-8 ? Math.sinh(r) / r : 1);
    const even = size * Math.cosh(r);
    this.g[0] = even + odd * d;
    this.g[1] = odd * b;
    this.g[2] = even - odd * d;
    return this.g;
  }

  /** Length of a vector at a point, in units of the data; infinite outside the table. */
  norm(x, y, vx, vy) {
    if (!this.inside(x, y)) return Infinity;
    const g = this.metric(x, y);
    return Math.sqrt(Math.max(0, g[0] * vx * vx + 2 * g[1] * vx * vy + g[2] * vy * vy));
  }

  /** log of the volume density and of the condition number. */
  invariants(x, y) {
    const jet = this.expand(x, y, 0);
    return [jet[0], 2 * Math.hypot(jet[6], jet[12])];
  }
}

/* C(u) = cosh √u and S(u) = sinh √u / √u with the derivatives of S: entire functions of u, which
   is why G is smooth where d = b = 0. */
function hyperbolic(u, out) {
  if (u < 1e-3) {
    out[0] = 1 + u / 2 + (u * u) / 24;
    out[1] = 1 + u / 6 + (u * u) / 120;
    out[2] = 1 / 6 + u / 60 + (u * u) / 1680;
    out[3] = 1 / 60 + u / 840 + (u * u) / 30240;
  } else {
    const r = Math.sqrt(u);
    out[0] = Math.cosh(r);
    out[1] = Math.sinh(r) / r;
    out[2] = (out[0] - out[1]) / (2 * u);
    out[3] = (out[1] / 2 - 3 * out[2]) / (2 * u);
  }
}
