/* Geodesics of a tabulated metric.

   A curve of N segments has the energy  E = N Σ q(x_k, Δ_k)  with  q(x, Δ) = Δᵀ G(x) Δ, Δ_k the
   step of a segment and x_k its middle. Newton's method minimises it: the Hessian is tridiagonal
   in blocks of 2 x 2. Where it is not positive definite, a multiple of the Hessian of a constant
   metric is added, which is. The curve is refined by doubling N. Its length is measured along the
   cubic curve through the nodes, so that the error of the midpoint rule hardly matters. */

const SEGMENTS = [16, 32, 64, 128, 256];
const RESOLVED = 3e-4; // relative change of the length with twice as many segments
const SEEN = 0.02; // relative error of the length with as few segments as one begins with
const LONGER = 1.01; // than its start a curve may be
const STEPS = 40; // of Newton's method, per refinement
const DECREMENT = 1e-9; // of the energy, relative, at which Newton's method stops

class GeodesicSolver {
  constructor(table) {
    this.table = table;
    const most = SEGMENTS[SEGMENTS.length - 1];
    this.gradient = new Float64Array(2 * (most + 1));
    this.diagonal = new Float64Array(3 * (most + 1)); // 11, 12, 22
    this.upper = new Float64Array(4 * (most + 1)); // rows k, columns k + 1
    this.plainDiagonal = new Float64Array(3 * (most + 1));
    this.plainUpper = new Float64Array(4 * (most + 1));
    this.term = new Float64Array(16);
    this.h = new Float64Array(4);
    this.grid = null;
  }

  /** The shortest of the geodesics from straight lines and from the best path on a grid. */
  solve(a, b) {
    const found = [];
    let straight = NaN;
    copies(this.table.periods, a, b).forEach((copy, k) => {
      const length = this.lineLength(a, copy);
      if (k === 0) straight = length;
      if (Number.isFinite(length)) found.push(this.relax([a, copy]));
    });
    if (!this.grid) this.grid = new PathGrid(this.table);
    const path = this.grid.path(a, b);
    if (path) found.push(this.relax(path));
    const good = found.filter((one) => one && Number.isFinite(one.length));
    if (!good.length) {
      return { nodes: null, length: NaN, straight, resolved: false, reason: this.reason(a, b) };
    }
    good.sort((p, q) => p.length - q.length);
    return { ...good[0], straight, reason: good[0].resolved ? "" : "not resolved" };
  }

  reason(a, b) {
    const inside = this.table.inside(a[0], a[1]) && this.table.inside(b[0], b[1]);
    return inside ? "no path inside the mapped region" : "a point lies outside the mapped region";
  }

  /** Newton's method from a polyline, with more and more segments. */
  relax(polyline) {
    const fine = this.resampled(polyline, SEGMENTS[SEGMENTS.length - 1]);
    if (!fine) return null;
    const bound = this.length(fine);
    const first = this.coarsest(polyline, bound);
    let kept = null;
    for (const n of SEGMENTS.slice(first)) {
      let nodes = kept ? refined(kept.nodes, true) : this.resampled(polyline, n);
      if (!Number.isFinite(this.energy(nodes, n))) nodes = refined(kept.nodes, false);
      const settled = this.minimise(nodes, n);
      const length = this.length(nodes);
      // Too few segments: their middles have jumped over a ridge. Begin again with more of them.
      if (!(length <= LONGER * bound)) {
        kept = null;
        continue;
      }
      const change = kept ? Math.abs(length - kept.length) : Infinity;
      kept = { nodes, length, resolved: settled && change <= RESOLVED * length };
      if (kept.resolved) break;
    }
    return kept || { nodes: fine, length: bound, resolved: false };
  }

  /* How many segments see the ground under a polyline: with fewer, the middles of the segments miss
     ridges, and a minimum of the energy leads across them. */
  coarsest(polyline, length) {
    for (let k = 0; k < SEGMENTS.length - 2; k++) {
      const nodes = this.resampled(polyline, SEGMENTS[k]);
      const coarse = Math.sqrt(this.energy(nodes, SEGMENTS[k]));
      if (Math.abs(coarse - length) < SEEN * length) return k;
    }
    return SEGMENTS.length - 2;
  }

  /** Moves the inner nodes to a minimum of the energy; whether it was reached. */
  minimise(nodes, n) {
    let energy = this.energy(nodes, n);
    if (!Number.isFinite(energy)) return false;
    const trial = new Float64Array(nodes.length);
    const step = new Float64Array(nodes.length);
    let damping = 0;
    for (let iteration = 0; iteration < STEPS; iteration++) {
      this.differentiate(nodes, n);
      while (!this.solveBlocks(n, damping, step)) damping = damping ? 4 * damping : 0.1;
      let slope = 0;
      for (let i = 2; i < 2 * n; i++) slope += this.gradient[i] * step[i];
      if (-slope <= DECREMENT * energy) return true;
      let share = 1;
      let lower = Infinity;
      for (let halvings = 0; halvings < 14; halvings++, share /= 2) {
        for (let i = 0; i < nodes.length; i++) trial[i] = nodes[i] + share * step[i];
        lower = this.energy(trial, n);
        if (lower <= energy + 1e-4 * share * slope) break;
        lower = Infinity;
      }
      if (!Number.isFinite(lower)) {
        if (damping > 1e4) return false;
        damping = damping ? 8 * damping : 1;
        continue;
      }
      nodes.set(trial);
      energy = lower;
      damping = share === 1 ? (damping > 0.05 ? damping / 8 : 0) : damping;
    }
    return false;
  }

  energy(nodes, n) {
    let total = 0;
    for (let k = 0; k < n; k++) {
      const at = 2 * k;
      const dx = nodes[at + 2] - nodes[at];
      const dy = nodes[at + 3] - nodes[at + 1];
      const speed = this.table.norm(
        (nodes[at] + nodes[at + 2]) / 2, (nodes[at + 1] + nodes[at + 3]) / 2, dx, dy);
      total += speed * speed;
    }
    return n * total;
  }

  /* q and its derivatives. With A = |Δ|², B = Δx² − Δy², D = 2 Δx Δy:
     q = eˢ (C A + S w),  w = d B + b D,  C and S functions of u = d² + b². */
  expand(x, y, dx, dy) {
    const jet = this.table.expand(x, y, 2);
    const { h, term } = this;
    const d = jet[6];
    const b = jet[12];
    hyperbolic(d * d + b * b, h);
    const [C, S, S1, S2] = h;
    const size = Math.exp(jet[0]);
    const A = dx * dx + dy * dy;
    const B = dx * dx - dy * dy;
    const D = 2 * dx * dy;
    const w = d * B + b * D;
    const first = (S / 2) * A + S1 * w; // of C A + S w by u, w held
    const second = (S1 / 2) * A + S2 * w;
    const q = size * (C * A + S * w);
    const qd = size * (2 * d * first + S * B);
    const qb = size * (2 * b * first + S * D);
    const qdd = size * (2 * first + 4 * d * d * second + 4 * d * S1 * B);
    const qbb = size * (2 * first + 4 * b * b * second + 4 * b * S1 * D);
    const qdb = size * (4 * d * b * second + 2 * d * S1 * D + 2 * b * S1 * B);
    // By the chain rule; q by s is q itself.
    const gx = q * jet[1] + qd * jet[7] + qb * jet[13];
    const gy = q * jet[2] + qd * jet[8] + qb * jet[14];
    const curvature = (i, j, ij) =>
      q * (jet[i] * jet[j] + jet[ij]) + qd * jet[6 + ij] + qb * jet[12 + ij] +
      qd * (jet[i] * jet[6 + j] + jet[j] * jet[6 + i]) +
      qb * (jet[i] * jet[12 + j] + jet[j] * jet[12 + i]) +
      qdd * jet[6 + i] * jet[6 + j] + qbb * jet[12 + i] * jet[12 + j] +
      qdb * (jet[6 + i] * jet[12 + j] + jet[12 + i] * jet[6 + j]);
    // The metric, and its derivatives along x and y applied to Δ.
    const even = size * C;
    const odd = size * S;
    const g11 = even + odd * d;
    const g12 = odd * b;
    const g22 = even - odd * d;
    const moved = (i) => {
      const u1 = 2 * d * jet[6 + i] + 2 * b * jet[12 + i];
      const e = even * jet[i] + size * (S / 2) * u1;
      const o = odd * jet[i] + size * S1 * u1;
      const p11 = e + o * d + odd * jet[6 + i];
      const p12 = o * b + odd * jet[12 + i];
      const p22 = e - o * d - odd * jet[6 + i];
      return [2 * (p11 * dx + p12 * dy), 2 * (p12 * dx + p22 * dy)];
    };
    const [bx1, bx2] = moved(1);
    const [by1, by2] = moved(2);
    term[0] = 2 * (g11 * dx + g12 * dy);
    term[1] = 2 * (g12 * dx + g22 * dy);
    term[2] = gx;
    term[3] = gy;
    term[4] = 2 * g11;
    term[5] = 2 * g12;
    term[6] = 2 * g22;
    // Rows: components of Δ; columns: components of x.
    term[7] = bx1;
    term[8] = by1;
    term[9] = bx2;
    term[10] = by2;
    term[11] = curvature(1, 1, 3);
    term[12] = curvature(1, 2, 4);
    term[13] = curvature(2, 2, 5);
    term[14] = q;
    return term;
  }

  /** Gradient and Hessian of the energy, and the Hessian with a metric that is held constant. */
  differentiate(nodes, n) {
    const { gradient, diagonal, upper, plainDiagonal, plainUpper } = this;
    for (const array of [gradient, diagonal, upper, plainDiagonal, plainUpper]) array.fill(0);
    for (let k = 0; k < n; k++) {
      const at = 2 * k;
      const t = this.expand(
        (nodes[at] + nodes[at + 2]) / 2, (nodes[at + 1] + nodes[at + 3]) / 2,
        nodes[at + 2] - nodes[at], nodes[at + 3] - nodes[at + 1]);
      gradient[at] += n * (t[2] / 2 - t[0]);
      gradient[at + 1] += n * (t[3] / 2 - t[1]);
      gradient[at + 2] += n * (t[2] / 2 + t[0]);
      gradient[at + 3] += n * (t[3] / 2 + t[1]);
      const across = [t[7], (t[8] + t[9]) / 2, t[10]]; // (B + Bᵀ) / 2
      for (let c = 0; c < 3; c++) {
        const straight = n * t[4 + c];
        const bent = (n * t[11 + c]) / 4;
        diagonal[3 * k + c] += straight - n * across[c] + bent;
        diagonal[3 * (k + 1) + c] += straight + n * across[c] + bent;
        plainDiagonal[3 * k + c] += straight;
        plainDiagonal[3 * (k + 1) + c] += straight;
      }
      const skew = (n * (t[9] - t[8])) / 2; // (Bᵀ − B) / 2, above the diagonal
      const u = 4 * k;
      upper[u] = n * (t[11] / 4 - t[4]);
      upper[u + 1] = n * (t[12] / 4 - t[5]) + skew;
      upper[u + 2] = n * (t[12] / 4 - t[5]) - skew;
      upper[u + 3] = n * (t[13] / 4 - t[6]);
      plainUpper[u] = -n * t[4];
      plainUpper[u + 1] = plainUpper[u + 2] = -n * t[5];
      plainUpper[u + 3] = -n * t[6];
    }
  }

  /* Solves (H + damping · plain) step = −gradient for the inner nodes, by block elimination;
     false when the matrix is not positive definite. */
  solveBlocks(n, damping, step) {
    const { gradient, diagonal, upper, plainDiagonal, plainUpper } = this;
    const inverse = new Float64Array(3 * n); // of the eliminated diagonal blocks
    const right = new Float64Array(2 * n);
    for (let k = 1; k < n; k++) {
      let p = diagonal[3 * k] + damping * plainDiagonal[3 * k];
      let q = diagonal[3 * k + 1] + damping * plainDiagonal[3 * k + 1];
      let r = diagonal[3 * k + 2] + damping * plainDiagonal[3 * k + 2];
      const scale = p + r;
      let r0 = -gradient[2 * k];
      let r1 = -gradient[2 * k + 1];
      if (k > 1) {
        const u = this.block(k - 1, damping);
        const i = 3 * (k - 1);
        // Uᵀ D⁻¹ U and Uᵀ D⁻¹ r of the node before.
        const a0 = inverse[i] * u[0] + inverse[i + 1] * u[2];
        const a1 = inverse[i] * u[1] + inverse[i + 1] * u[3];
        const b0 = inverse[i + 1] * u[0] + inverse[i + 2] * u[2];
        const b1 = inverse[i + 1] * u[1] + inverse[i + 2] * u[3];
        p -= u[0] * a0 + u[2] * b0;
        q -= u[0] * a1 + u[2] * b1;
        r -= u[1] * a1 + u[3] * b1;
        r0 -= a0 * right[2 * (k - 1)] + b0 * right[2 * (k - 1) + 1];
        r1 -= a1 * right[2 * (k - 1)] + b1 * right[2 * (k - 1) + 1];
      }
      const determinant = p * r - q * q;
      if (!(p > 1e-12 * Math.abs(scale) && determinant > 1e-14 * scale * scale)) return false;
      inverse[3 * k] = r / determinant;
      inverse[3 * k + 1] = -q / determinant;
      inverse[3 * k + 2] = p / determinant;
      right[2 * k] = r0;
      right[2 * k + 1] = r1;
    }
    step.fill(0);
    for (let k = n - 1; k > 0; k--) {
      let r0 = right[2 * k];
      let r1 = right[2 * k + 1];
      if (k < n - 1) {
        const u = this.block(k, damping);
        r0 -= u[0] * step[2 * k + 2] + u[1] * step[2 * k + 3];
        r1 -= u[2] * step[2 * k + 2] + u[3] * step[2 * k + 3];
      }
      step[2 * k] = inverse[3 * k] * r0 + inverse[3 * k + 1] * r1;
      step[2 * k + 1] = inverse[3 * k + 1] * r0 + inverse[3 * k + 2] * r1;
    }
    return true;
  }

  block(k, damping) {
    const { upper, plainUpper } = this;
    const at = 4 * k;
    return [0, 1, 2, 3].map((c) => upper[at + c] + damping * plainUpper[at + c]);
  }

  /** Length of the cubic curve through the nodes, by three Gauss points per segment. */
  length(nodes) {
    const n = nodes.length / 2 - 1;
    const slope = (k, c) => {
      const at = 2 * k + c;
      if (n < 2) return nodes[2 + c] - nodes[c];
      if (k === 0) return (-3 * nodes[at] + 4 * nodes[at + 2] - nodes[at + 4]) / 2;
      if (k === n) return (3 * nodes[at] - 4 * nodes[at - 2] + nodes[at - 4]) / 2;
      return (nodes[at + 2] - nodes[at - 2]) / 2;
    };
    const root = Math.sqrt(0.6) / 2;
    const gauss = [[0.5 - root, 5 / 18], [0.5, 4 / 9], [0.5 + root, 5 / 18]];
    let total = 0;
    for (let k = 0; k < n; k++) {
      const x0 = nodes[2 * k], y0 = nodes[2 * k + 1];
      const x1 = nodes[2 * k + 2], y1 = nodes[2 * k + 3];
      const mx0 = slope(k, 0), my0 = slope(k, 1);
      const mx1 = slope(k + 1, 0), my1 = slope(k + 1, 1);
      for (const [t, weight] of gauss) {
        const s = 1 - t;
        const h0 = (1 + 2 * t) * s * s, h1 = t * s * s, h2 = t * t * (3 - 2 * t), h3 = -t * t * s;
        const v0 = -6 * t * s, v1 = s * (1 - 3 * t), v3 = t * (3 * t - 2);
        total += weight * this.table.norm(
          h0 * x0 + h1 * mx0 + h2 * x1 + h3 * mx1, h0 * y0 + h1 * my0 + h2 * y1 + h3 * my1,
          v0 * (x0 - x1) + v1 * mx0 + v3 * mx1, v0 * (y0 - y1) + v1 * my0 + v3 * my1);
      }
    }
    return total;
  }

  lineLength(a, b) {
    const n = 64;
    const nodes = new Float64Array(2 * (n + 1));
    for (let k = 0; k <= n; k++) {
      nodes[2 * k] = a[0] + (k / n) * (b[0] - a[0]);
      nodes[2 * k + 1] = a[1] + (k / n) * (b[1] - a[1]);
    }
    return this.length(nodes);
  }

  /** Points of a polyline at equal lengths in the data; null where it leaves the table. */
  resampled(polyline, n) {
    const fine = [];
    const parts = Math.max(1, Math.ceil(192 / (polyline.length - 1)));
    for (let k = 0; k + 1 < polyline.length; k++) {
      const [a, b] = [polyline[k], polyline[k + 1]];
      for (let i = 0; i < parts; i++) {
        const t = i / parts;
        fine.push([a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]);
      }
    }
    fine.push(polyline[polyline.length - 1]);
    const passed = new Float64Array(fine.length);
    for (let k = 1; k < fine.length; k++) {
      const [a, b] = [fine[k - 1], fine[k]];
      passed[k] = passed[k - 1] + this.table.norm(
        (a[0] + b[0]) / 2, (a[1] + b[1]) / 2, b[0] - a[0], b[1] - a[1]);
    }
    const total = passed[passed.length - 1];
    if (!Number.isFinite(total)) return null;
    const nodes = new Float64Array(2 * (n + 1));
    let k = 1;
    for (let i = 0; i <= n; i++) {
      const wanted = (total * i) / n;
      while (k < fine.length - 1 && passed[k] < wanted) k++;
      const span = passed[k] - passed[k - 1];
      const t = span > 0 ? Math.min(1, Math.max(0, (wanted - passed[k - 1]) / span)) : 0;
      nodes[2 * i] = fine[k - 1][0] + t * (fine[k][0] - fine[k - 1][0]);
      nodes[2 * i + 1] = fine[k - 1][1] + t * (fine[k][1] - fine[k - 1][1]);
    }
    const last = fine[fine.length - 1];
    nodes.set(fine[0], 0);
    nodes.set(last, 2 * n);
    return nodes;
  }
}

/* Where a line from a to b may end: at the copy of b that is the nearest, and, the long way round,
   at its neighbours along one periodic coordinate or two. */
function copies(periods, a, b) {
  let found = [nearestCopy(periods, b, a)];
  periods.forEach((period, axis) => {
    if (!period) return;
    found = found.concat(found.map((end) => {
      const other = [...end];
      other[axis] += end[axis] > a[axis] ? -period : period;
      return other;
    }));
  });
  return found;
}

/** Twice as many segments: between two nodes the cubic through four of them, or the middle. */
function refined(nodes, smooth) {
  const n = nodes.length / 2 - 1;
  const fine = new Float64Array(2 * (2 * n + 1));
  for (let k = 0; k <= n; k++) {
    for (let c = 0; c < 2; c++) {
      fine[4 * k + c] = nodes[2 * k + c];
      if (k === n) continue;
      const [p, q] = [nodes[2 * k + c], nodes[2 * k + 2 + c]];
      const inner = smooth && k > 0 && k < n - 1;
      fine[4 * k + 2 + c] = inner
        ? (9 * (p + q) - nodes[2 * k - 2 + c] - nodes[2 * k + 4 + c]) / 16
        : (p + q) / 2;
    }
  }
  return fine;
}

/** Points of a curve at equal times, from nodes at equal times. */
function pointsAlong(nodes, count) {
  const n = nodes.length / 2 - 1;
  const points = [];
  for (let i = 0; i < count; i++) {
    const t = count > 1 ? (n * i) / (count - 1) : 0;
    const k = Math.min(n - 1, Math.floor(t));
    const u = t - k;
    points.push([
      nodes[2 * k] + u * (nodes[2 * k + 2] - nodes[2 * k]),
      nodes[2 * k + 1] + u * (nodes[2 * k + 3] - nodes[2 * k + 1]),
    ]);
  }
  return points;
}

/* Shortest paths on a grid of the plane with sixteen neighbours: start curves that find their way
   round what a straight line cannot cross. Distances from the last root are kept, so that moving
   one of two points costs one search at most. */
class PathGrid {
  constructor(table) {
    this.table = table;
    const longest = Math.max(table.high[0] - table.low[0], table.high[1] - table.low[1]);
    this.counts = [0, 1].map((a) =>
      Math.max(12, Math.round((52 * (table.high[a] - table.low[a])) / longest)));
    // Along a period the last node would be the first one again.
    this.steps = [0, 1].map((a) =>
      (table.high[a] - table.low[a]) / (table.periods[a] ? this.counts[a] : this.counts[a] - 1));
    const moves = [[1, 0], [0, 1], [1, 1], [1, -1], [2, 1], [1, 2], [2, -1], [1, -2]];
    this.moves = moves.concat(moves.map(([i, j]) => [-i, -j]));
    const [nx, ny] = this.counts;
    this.weights = new Float64Array(nx * ny * 16).fill(Infinity);
    for (let i = 0; i < nx; i++) {
      for (let j = 0; j < ny; j++) {
        for (let m = 0; m < 8; m++) {
          const [di, dj] = this.moves[m];
          const other = this.node(i + di, j + dj);
          if (other < 0) continue;
          const length = this.edge(this.point(i, j), this.point(i + di, j + dj));
          this.weights[(i * ny + j) * 16 + m] = length;
          this.weights[other * 16 + m + 8] = length;
        }
      }
    }
    this.root = null;
    this.distance = new Float64Array(nx * ny);
    this.before = new Int32Array(nx * ny);
  }

  /** The number of a node; -1 outside. */
  node(i, j) {
    const [nx, ny] = this.counts;
    const { periods } = this.table;
    const k = periods[0] ? modulo(i, nx) : i;
    const l = periods[1] ? modulo(j, ny) : j;
    return k < 0 || l < 0 || k >= nx || l >= ny ? -1 : k * ny + l;
  }

  point(i, j) {
    return [this.table.low[0] + i * this.steps[0], this.table.low[1] + j * this.steps[1]];
  }

  edge(a, b) {
    const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
    const at = (t) => this.table.norm(a[0] + t * dx, a[1] + t * dy, dx, dy);
    return (at(0.0) + 4 * at(0.5) + at(1.0)) / 6;
  }

  corners(z) {
    const { low, periods } = this.table;
    const at = [0, 1].map((a) => {
      const cell = Math.floor((z[a] - low[a]) / this.steps[a]);
      return periods[a] ? cell : Math.min(Math.max(cell, 0), this.counts[a] - 2);
    });
    const found = [];
    for (const i of [at[0], at[0] + 1]) {
      for (const j of [at[1], at[1] + 1]) {
        const length = this.edge(z, this.point(i, j));
        if (Number.isFinite(length)) found.push([this.node(i, j), length]);
      }
    }
    return found;
  }

  /** Distances of all nodes from a point (Dijkstra). */
  flood(z) {
    const ny = this.counts[1];
    const { distance, before, weights } = this;
    distance.fill(Infinity);
    before.fill(-1);
    const queue = new Heap(distance);
    for (const [node, length] of this.corners(z)) {
      distance[node] = length;
      queue.push(node);
    }
    while (queue.size) {
      const node = queue.pop();
      const i = Math.floor(node / ny);
      const j = node - i * ny;
      for (let m = 0; m < 16; m++) {
        const length = distance[node] + weights[node * 16 + m];
        if (!Number.isFinite(length)) continue; // among them all moves that leave the grid
        const other = this.node(i + this.moves[m][0], j + this.moves[m][1]);
        if (length < distance[other]) {
          distance[other] = length;
          before[other] = node;
          queue.push(other);
        }
      }
    }
    this.root = [z[0], z[1]];
  }

  rootedAt(z) {
    return this.root && this.root[0] === z[0] && this.root[1] === z[1];
  }

  /** A polyline from a to b; null when there is none. */
  path(a, b) {
    const turned = this.rootedAt(b);
    if (!turned && !this.rootedAt(a)) this.flood(a);
    const end = turned ? a : b;
    let best = -1;
    let least = Infinity;
    for (const [node, length] of this.corners(end)) {
      if (this.distance[node] + length < least) {
        least = this.distance[node] + length;
        best = node;
      }
    }
    if (best < 0) return null;
    const ny = this.counts[1];
    const points = [end];
    for (let node = best; node >= 0; node = this.before[node]) {
      points.push(this.point(Math.floor(node / ny), node % ny));
    }
    points.push(this.root);
    if (!turned) points.reverse();
    const { periods } = this.table;
    if (points.length <= 3) return [a, nearestCopy(periods, b, a)];
    // Nodes are numbered within one period: each point where it is the nearest to the one before.
    for (let k = 1; k < points.length; k++) {
      points[k] = nearestCopy(periods, points[k], points[k - 1]);
    }
    return points;
  }
}

/** A binary heap of nodes by their distance; a node may be in it more than once. */
class Heap {
  constructor(key) {
    this.key = key;
    this.nodes = [];
    this.keys = [];
  }

  get size() {
    return this.nodes.length;
  }

  push(node) {
    const { nodes, keys } = this;
    const key = this.key[node];
    let at = nodes.length;
    nodes.push(node);
    keys.push(key);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent] <= key) break;
      nodes[at] = nodes[parent];
      keys[at] = keys[parent];
      at = parent;
    }
    nodes[at] = node;
    keys[at] = key;
  }

  pop() {
    const { nodes, keys } = this;
    const top = nodes[0];
    const node = nodes.pop();
    const key = keys.pop();
    const size = nodes.length;
    let at = 0;
    while (size) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && keys[child + 1] < keys[child]) child++;
      if (keys[child] >= key) break;
      nodes[at] = nodes[child];
      keys[at] = keys[child];
      at = child;
    }
    if (size) {
      nodes[at] = node;
      keys[at] = key;
    }
    return top;
  }
}
