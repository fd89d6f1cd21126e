/* The page: reads the data, draws the map, and answers what a person does with it. */

const NUMBERS = 200; // points of a curve on the screen
const LABEL = 24; // letters of a label, where it stands in a line
const DIFFERENT = 0.01; // relative difference from riemae's own length that is marked

function $(id) {
  return document.getElementById(id);
}

/** What all three kinds of pages share: points, classes, backgrounds, the map. */
class Page {
  constructor(data) {
    this.data = data;
    this.axes = data.axes;
    const { points } = data;
    this.points = {
      ...points,
      index: unpack(points.index, Int32Array),
      coordinates: unpack(data.coordinates, Float32Array),
    };
    this.points.range = [Math.min(...points.values), Math.max(...points.values)];
    this.rowOf = new Map([...this.points.index].map((index, row) => [index, row]));
    this.table = data.table ? new MetricTable(data.table) : null;
    const lattice = data.table || data.speed;
    this.extent = { low: lattice.low, high: lattice.high };
    this.periods = lattice.periods;
    this.backgrounds = this.allBackgrounds();
    this.thumbs = data.thumbs && new Tiles(data.thumbs, () => {});
    this.atlas = data.atlas && new Tiles(data.atlas, () => this.refresh());
    this.frames = data.frames && new Tiles(data.frames, () => this.refresh());
    this.features = data.features && new Field(data.features, data.features.names.length);
    this.map = new PlotMap($("map"), this);
    this.controls();
    this.classButtons();
    this.map.resize();
    document.querySelectorAll("button.pair").forEach((button) => {
      button.addEventListener("click", () => {
        this.showPair(Number(button.dataset.pair));
        $("map").scrollIntoView({ block: "nearest" });
      });
    });
  }

  allBackgrounds() {
    const found = [];
    const { table } = this;
    if (table) {
      const { low, high } = table;
      const at = (which) => (x, y) =>
        table.inside(x, y) ? table.invariants(x, y)[which] / Math.LN10 : NaN;
      const plane = this.data.kind === "section" ? " of the section" : "";
      found.push({ key: "volume", name: `Volume${plane}`, low, high, at: at(0), logarithmic: true,
        note: "data per area of the plot, √det G" });
      found.push({ key: "condition", name: `Condition number${plane}`, low, high, at: at(1),
        logarithmic: true, note: "stretch of one direction against the other, squared" });
    }
    for (const one of this.data.backgrounds) {
      const field = new Field(one);
      found.push({ key: one.key, name: one.name, low: one.low, high: one.high,
        at: (x, y) => field.at(x, y), diverging: one.key === "curvature",
        note: one.key === "curvature" ? "per squared unit of the data" : "in units of the data" });
    }
    return found;
  }

  controls() {
    const { map } = this;
    const select = $("background");
    for (const { key, name } of this.backgrounds) element(select, "option", "", name).value = key;
    element(select, "option", "", "None").value = "";
    select.addEventListener("change", () => {
      map.background = select.value;
      map.draw();
    });
    $("ellipses").addEventListener("change", (event) => {
      map.ellipses = event.target.checked;
      map.draw();
    });
    $("zoom-in").addEventListener("click", () => map.zoomAt(1.5));
    $("zoom-out").addEventListener("click", () => map.zoomAt(1 / 1.5));
    $("zoom-fit").addEventListener("click", () => {
      map.fit();
      map.draw();
    });
  }

  /** The colour scale of the background. */
  legend(raster) {
    const box = $("scale");
    if (box.shown === raster) return;
    box.shown = raster;
    box.replaceChildren();
    if (!raster) return;
    const { range, colours, background } = raster;
    const text = (v) => brief(background.logarithmic ? 10 ** v : v);
    element(box, "span", "", background.name);
    element(box, "span", "", text(range[0]));
    ramp(element(box, "canvas"), colours);
    element(box, "span", "", text(range[1]));
    element(box, "span", "", `(${background.note}${background.logarithmic ? ", logarithmic" : ""})`);
  }

  classButtons() {
    const box = $("classes");
    box.replaceChildren();
    const { names, values, range } = this.points;
    if (values.length) {
      element(box, "span", "", brief(range[0]));
      const bar = element(box, "canvas", "ramp");
      ramp(bar, SCALE);
      element(box, "span", "", brief(range[1]));
    }
    names.forEach((name, code) => {
      const button = element(box, "button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!this.map.hidden.has(code)));
      const icon = element(button, "canvas");
      icon.width = icon.height = 32;
      const context = icon.getContext("2d");
      context.fillStyle = colourOf(code);
      marker(context, shapeOf(code), 16, 16, 9);
      context.fill();
      element(button, "span", "", name).title = name;
      button.addEventListener("click", () => {
        const { hidden } = this.map;
        if (!hidden.delete(code)) hidden.add(code);
        button.setAttribute("aria-pressed", String(!hidden.has(code)));
        this.map.draw();
      });
    });
  }

  /** "#12 (seven)" for a drawn point. */
  nameOf(row) {
    const text = this.points.texts[row];
    return `#${this.points.index[row]}${text === undefined ? "" : ` (${clipped(text, LABEL)})`}`;
  }

  describe(row, box) {
    box.replaceChildren();
    if (this.thumbs) this.thumbs.show(element(box, "canvas"), row);
    const { texts, coordinates, index } = this.points;
    if (texts.length) element(box, "strong", "", clipped(texts[row], 4 * LABEL));
    element(box, "div", "", `#${index[row]}`);
    const shown = this.data.kind === "line" ? 1 : 2;
    const numbers = [0, 1].slice(0, shown).map((a) => brief(coordinates[2 * row + a]));
    element(box, "div", "", `(${numbers.join(", ")})`);
  }

  lengths(rows) {
    const box = $("lengths");
    box.replaceChildren();
    for (const [name, value, note, kind] of rows) {
      element(box, "dt", "", name);
      const cell = element(box, "dd", kind || "", value);
      if (note) {
        cell.append(" ");
        element(cell, "small", "", note);
      }
    }
  }

  /** A point where the map shows it. */
  home(point) {
    return home({ low: this.extent.low, periods: this.periods }, point);
  }

  /** Which sides of the map are one and the same, in words. */
  sides() {
    const names = ["left and right", "lower and upper"].filter((_, a) => this.periods[a]);
    const one = (name) => `the ${name} sides are the same`;
    return names.length ? ` Curves may go round: ${names.map(one).join(", and ")}.` : "";
  }

  /** Decoded images, or features, at points of the plane. */
  showAlong(curve, line) {
    const box = $("along");
    const [points, straight] = [curve, line].map((one) => one?.map((z) => this.home(z)));
    if (this.atlas) {
      this.strip(box, 0, "Decoded along the geodesic", points);
      if (straight) this.strip(box, 1, "Decoded along the straight line", straight);
    } else if (this.features) {
      if (!box.children.length) {
        element(box, "h3", "", "Decoded features along the geodesic");
        element(box, "div");
      }
      const lines = this.features.counts && this.data.features.names.map((name, c) => ({
        name, values: points.map(([x, y]) => this.features.at(x, y, c)),
      }));
      lineChart(box.children[1], lines, "Decoded features from A to B");
    }
  }

  strip(box, at, title, points) {
    while (box.children.length <= 2 * at) {
      element(box, "h3");
      element(box, "div", "strip");
    }
    box.children[2 * at].textContent = title;
    const row = box.children[2 * at + 1];
    strip(row, points.length, (canvas, k) => {
      this.atlas.blend(canvas, corners(this.data.atlas, ...points[k]));
    });
  }

  refresh() {}

  moved() {}

  /** Names of places on the map, and where these are. */
  named() {
    const ends = (this.handles || []).map(({ button, position }) => [button.textContent, position]);
    const marks = (this.buttons || []).map(({ button, place }) => [button.textContent, place]);
    return [...ends, ...marks];
  }
}

function ramp(canvas, colours) {
  canvas.width = 128;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  for (let i = 0; i < 128; i++) {
    context.fillStyle = `rgb(${between(colours, i / 127)})`;
    context.fillRect(i, 0, 1, 1);
  }
}

/** A and B on the map, and what to do when one moves: at most once per picture. */
class WithHandles extends Page {
  addHandles(start) {
    this.handles = ["A", "B"].map((name, k) => {
      const button = element($("handles"), "button", "handle", name);
      button.type = "button";
      button.dataset.end = name;
      return new Handle(this.map, button, start[k], () => {
        this.pair = -1;
        $("pairs").value = "";
        this.later();
      });
    });
    this.timings = [];
    this.moved();
  }

  moved() {
    for (const handle of this.handles || []) handle.show();
  }

  later() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.answer();
    });
  }

  refresh() {
    if (this.handles) this.answer();
  }

  pairChoice() {
    const box = $("choice");
    const label = element(box, "label", "", "Checked pair ");
    const select = element(label, "select");
    select.id = "pairs";
    element(select, "option", "", "none: A and B are free").value = "";
    this.data.pairs.index.forEach(([i, j], k) => {
      element(select, "option", "", `${this.label(i)} – ${this.label(j)}`).value = String(k);
    });
    select.addEventListener("change", () => {
      if (select.value !== "") this.showPair(Number(select.value));
    });
    const swap = element(box, "button", "", "Another pair");
    swap.type = "button";
    swap.addEventListener("click", () => {
      this.showPair((this.pair + 1) % this.data.pairs.index.length);
    });
  }

  label(index) {
    const row = this.rowOf.get(index);
    return row === undefined ? `#${index}` : this.nameOf(row);
  }

  showPair(k) {
    const ends = this.ends(k);
    this.handles.forEach((handle, which) => {
      handle.position = ends[which];
      handle.show();
    });
    this.pair = k;
    $("pairs").value = String(k);
    this.answer();
  }

  nameHandles() {
    for (const handle of this.handles) {
      const row = this.map.nearest(...this.map.toScreen(...handle.position), 1e6);
      const place = handle.position.slice(0, this.data.m).map(brief).join(", ");
      const near = row < 0 ? "" : `, next to ${this.nameOf(row)}`;
      handle.button.setAttribute("aria-label",
        `${handle.button.dataset.end} at (${place})${near}. Arrow keys move it, Enter puts it on ` +
        "the nearest point.");
    }
  }
}

/** Two latent dimensions: geodesics are solved here. */
class PlanePage extends WithHandles {
  constructor(data) {
    super(data);
    this.solver = new GeodesicSolver(this.table);
    this.pairEnds = unpack(data.pairs.ends, Float64Array);
    this.pair = -1;
    $("how").textContent = "Drag A and B, or move them with the arrow keys; Enter puts one on the " +
      `nearest point. The geodesic is solved in this page.${this.sides()} Drag the map to pan, ` +
      "Ctrl and wheel to zoom.";
    this.pairChoice();
    this.addHandles(this.ends(0));
    this.showPair(this.firstPair());
    this.checkAll();
  }

  /** A pair to begin with: one whose geodesic is far from straight. */
  firstPair() {
    const { straight, length, converged } = this.data.pairs;
    let best = 0;
    let most = 0;
    length.forEach((value, k) => {
      const detour = Math.min(straight[k] / value, 1.5) * Math.sqrt(value);
      if (converged[k] && detour > most) {
        most = detour;
        best = k;
      }
    });
    return best;
  }

  ends(k) {
    const e = this.pairEnds;
    return [[e[4 * k], e[4 * k + 1]], [e[4 * k + 2], e[4 * k + 3]]];
  }

  /** Relative difference from riemae's length, for one of its pairs. */
  compare(k, solution) {
    const own = this.data.pairs.length[k];
    return own === null ? NaN : (solution.length - own) / own;
  }

  answer() {
    const began = performance.now();
    const [a, b] = this.handles.map((handle) => handle.position);
    const solution = this.solver.solve(a, b);
    this.solution = solution;
    const line = [a, nearestCopy(this.periods, b, a)];
    const curve = solution.nodes ? pointsAlong(solution.nodes, NUMBERS) : [];
    this.map.curves = [{ points: line, dashed: true }];
    if (curve.length) {
      this.map.curves.push({ points: curve, marks: pointsAlong(solution.nodes, 9).slice(1, -1) });
    }
    this.map.drawOverlay();
    this.showLengths(solution);
    const frames = this.atlas ? 9 : 41;
    const straight = Array.from({ length: frames }, (_, k) =>
      [0, 1].map((c) => a[c] + (k / (frames - 1)) * (line[1][c] - a[c])));
    this.showAlong(solution.nodes ? pointsAlong(solution.nodes, frames) : straight, straight);
    this.nameHandles();
    this.timings.push(performance.now() - began);
    if (this.timings.length > 500) this.timings.shift();
  }

  showLengths(solution) {
    const { pairs } = this.data;
    const more = solution.straight / solution.length - 1;
    const detour = Number.isFinite(more) ? `${(100 * Math.max(0, more)).toFixed(1)} % longer` : "";
    const rows = [
      ["Geodesic", brief(solution.length), "solved here", "main"],
      ["Straight line", Number.isFinite(solution.straight) ? brief(solution.straight) : "–",
        Number.isFinite(solution.straight) ? detour : "leaves the mapped region"],
    ];
    let mark = "";
    if (this.pair >= 0) {
      const k = this.pair;
      const difference = this.compare(k, solution);
      const bar = pairs.error[k] === null ? "" : ` ± ${brief(pairs.error[k])}`;
      rows.push(["riemae's own", `${brief(pairs.length[k])}${bar}`, signed(difference)]);
      mark = explain(difference, pairs.converged[k]);
    } else {
      rows.push(["riemae's own", "–", "known for checked pairs"]);
    }
    if (solution.reason) mark = `Do not trust this curve: ${solution.reason}.`;
    this.lengths(rows);
    $("mark").textContent = mark;
  }

  /** All of riemae's pairs, a few at a time, so that the page stays awake. */
  checkAll() {
    const total = this.data.pairs.index.length;
    this.differences = [];
    const some = () => {
      const until = performance.now() + 12;
      while (this.differences.length < total && performance.now() < until) {
        const k = this.differences.length;
        this.differences.push(this.compare(k, this.solver.solve(...this.ends(k))));
      }
      if (this.differences.length < total) setTimeout(some, 0);
      else this.showChecked();
    };
    setTimeout(some, 50);
  }

  showChecked() {
    const { converged } = this.data.pairs;
    const sizes = this.differences.map(Math.abs);
    const known = sizes.filter(Number.isFinite).sort((a, b) => a - b);
    const marked = sizes.map((size, k) => k)
      .filter((k) => !(sizes[k] <= DIFFERENT) || !converged[k]);
    const box = $("checked");
    box.replaceChildren();
    const percent = (x) => `${(100 * x).toPrecision(2)} %`;
    element(box, "p", "", known.length
      ? `Checked against riemae on ${sizes.length} pairs: the median difference is ` +
        `${percent(quantile(known, 0.5))}, and ${sizes.length - marked.length} are within 1 %.`
      : "No pair could be checked.");
    if (!marked.length) return;
    element(box, "p", "", "Marked, because the two differ or riemae's own did not converge:");
    const list = element(box, "ul");
    for (const k of marked.slice(0, 12)) {
      const [i, j] = this.data.pairs.index[k];
      const button = element(element(list, "li"), "button", "", `${this.label(i)} – ${this.label(j)}`);
      button.type = "button";
      button.addEventListener("click", () => this.showPair(k));
    }
    if (marked.length > 12) element(list, "li", "", `and ${marked.length - 12} more`);
  }
}

/** What the length here differs by, in words. */
function signed(difference) {
  if (!Number.isFinite(difference)) return "";
  const size = (100 * Math.abs(difference)).toFixed(2);
  if (size === "0.00") return "the same here, to 0.01 %";
  return `${size} % ${difference > 0 ? "longer" : "shorter"} here`;
}

function explain(difference, converged) {
  if (!converged) return "riemae's own geodesic did not reach its accuracy for this pair.";
  if (!(Math.abs(difference) > DIFFERENT)) return "";
  return difference < 0
    ? "≠ The curve found here is more than 1 % shorter than riemae's, which is another local geodesic."
    : "≠ riemae's geodesic is more than 1 % shorter: it takes another way.";
}

/* One latent dimension: the way is given, or two ways where the line comes round, and its length is
   the integral of the magnification. */
class LinePage extends WithHandles {
  constructor(data) {
    const counts = data.speed.counts;
    const speed = unpack(data.speed.values, Float32Array);
    const [x0, x1] = [data.speed.low[0], data.speed.high[0]];
    const step = (x1 - x0) / (counts[0] - 1);
    // Rows of classes below, the curve of the magnification above.
    const span = x1 - x0;
    const rows = Math.max(1, data.points.names.length);
    const coordinates = unpack(data.coordinates, Float32Array);
    for (let i = 0; 2 * i < coordinates.length; i++) {
      const code = data.points.codes.length ? data.points.codes[i] : 0;
      const jitter = ((i * 0.618034) % 1) - 0.5;
      coordinates[2 * i + 1] = span * (-0.05 - (0.3 * (code + 0.5 + 0.6 * jitter)) / rows);
    }
    data.speed.low = [x0, -0.4 * span];
    data.speed.high = [x1, 0.36 * span];
    super(data);
    this.points.coordinates = coordinates;
    this.step = step;
    this.start = x0;
    this.passed = new Float64Array(speed.length);
    for (let k = 1; k < speed.length; k++) {
      this.passed[k] = this.passed[k - 1] + (step * (speed[k - 1] + speed[k])) / 2;
    }
    const finite = [...speed].filter((v) => v > 0);
    const [low, high] = [Math.min(...finite), Math.max(...finite)].map(Math.log10);
    const height = (v) => 0.06 * span + (0.24 * span * (Math.log10(v) - low)) / (high - low || 1);
    this.speedCurve = [...speed].map((v, k) => [x0 + k * step, height(v)])
      .filter((p) => Number.isFinite(p[1]));
    this.pairEnds = unpack(data.pairs.ends, Float64Array);
    this.pair = -1;
    $("how").textContent = `Drag A and B along the line, or use the arrow keys.${this.sides()} The ` +
      `curve above the points is the magnification |df/dz|, from ${brief(10 ** low)} to ${brief(10 ** high)}, ` +
      "on a logarithmic scale: where it is high, the same step means more.";
    this.pairChoice();
    this.addHandles(this.ends(0));
    this.showPair(0);
  }

  ends(k) {
    return [[this.pairEnds[2 * k], 0], [this.pairEnds[2 * k + 1], 0]];
  }

  /** Length of the curve of the decoder from the left side to z. */
  until(z) {
    const at = Math.min(Math.max((z - this.start) / this.step, 0), this.passed.length - 1);
    const k = Math.min(this.passed.length - 2, Math.floor(at));
    return this.passed[k] + (at - k) * (this.passed[k + 1] - this.passed[k]);
  }

  answer() {
    const began = performance.now();
    for (const handle of this.handles) {
      handle.position[1] = 0;
      handle.show();
    }
    const [a, b] = this.handles.map((handle) => handle.position[0]);
    const [period] = this.periods;
    let length = Math.abs(this.until(b) - this.until(a));
    let stop = b;
    const around = period ? this.passed[this.passed.length - 1] - length : Infinity;
    if (around < length) {
      length = around;
      stop += b > a ? -period : period;
    }
    this.solution = { length };
    const { pairs } = this.data;
    const [near] = nearestCopy([period], [b], [a]);
    const rows = [["Length", brief(length), `of the ${period ? "shorter" : "only"} way`, "main"],
      ["In the plot", brief(Math.abs(near - a)), ""]];
    let mark = "";
    if (this.pair >= 0) {
      const own = pairs.length[this.pair];
      const difference = (length - own) / own;
      rows.push(["riemae's own", brief(own), signed(difference)]);
      mark = explain(difference, pairs.converged[this.pair]);
    }
    this.lengths(rows);
    $("mark").textContent = mark;
    this.map.curves = [{ points: this.speedCurve, faint: true }, { points: [[a, 0], [stop, 0]] }];
    this.map.drawOverlay();
    const frames = this.atlas ? 9 : 61;
    this.showAlong(Array.from({ length: frames }, (_, k) => [a + (k / (frames - 1)) * (stop - a), 0]));
    this.nameHandles();
    this.timings.push(performance.now() - began);
  }
}

/** More dimensions: geodesics among landmarks, seen in a section. */
class SectionPage extends Page {
  constructor(data) {
    super(data);
    const marks = data.landmarks;
    const places = unpack(marks.coordinates, Float32Array);
    this.seen = unpack(marks.seen, Float32Array);
    this.parallel = {
      curves: unpack(marks.parallel.curves, Float32Array),
      background: unpack(marks.parallel.background, Float32Array),
    };
    this.worst = {
      seen: unpack(data.worst.seen, Float32Array),
      curves: unpack(data.worst.curves, Float32Array),
    };
    this.chosen = [0, marks.index.length - 1];
    $("how").textContent = `The map is a plane through ${data.m} dimensions, chosen by ` +
      `${data.chosenBy}; points are seen along the other directions. Choose two landmarks, on the ` +
      "map or here.";
    this.selects = ["A", "B"].map((name, which) => {
      const label = element($("choice"), "label", "", `${name} `);
      const select = element(label, "select");
      marks.index.forEach((index, k) => {
        element(select, "option", "", this.landmark(index)).value = String(k);
      });
      select.addEventListener("change", () => {
        this.chosen[which] = Number(select.value);
        this.answer();
      });
      return select;
    });
    this.next = 0;
    this.buttons = marks.index.map((index, k) => {
      const button = element($("handles"), "button", "handle landmark", this.short(index));
      button.type = "button";
      button.setAttribute("aria-label", `Landmark ${this.landmark(index)}`);
      button.addEventListener("click", () => {
        this.chosen[this.next] = k;
        this.next = 1 - this.next;
        this.answer();
      });
      return { button, place: [places[2 * k], places[2 * k + 1]] };
    });
    this.moved();
    this.answer();
    this.checked();
  }

  landmark(index) {
    const row = this.rowOf.get(index);
    return row === undefined ? `#${index}` : this.nameOf(row);
  }

  short(index) {
    const row = this.rowOf.get(index);
    if (row === undefined || this.points.values.length) return `#${index}`;
    const text = this.points.texts[row];
    return text === undefined ? `#${index}` : clipped(text, 16);
  }

  moved() {
    for (const { button, place } of this.buttons || []) {
      const [px, py] = this.map.toScreen(...place);
      button.style.left = `${px}px`;
      button.style.top = `${py}px`;
      button.hidden = px < 0 || py < 0 || px > this.map.width || py > this.map.height;
    }
  }

  refresh() {
    if (this.buttons) this.answer();
  }

  /** One of the pairs that the plot shows worst, with its geodesic. */
  showPair(k) {
    const [i] = this.data.pairs.index[k];
    const row = this.rowOf.get(i);
    if (row === undefined) return;
    const { coordinates } = this.points;
    this.map.hover = -1;
    this.map.hoverAt(...this.map.toScreen(coordinates[2 * row], coordinates[2 * row + 1]));
    const ends = this.data.pairs.index[k].map((index) => this.rowOf.get(index));
    if (ends.some((one) => one === undefined)) return;
    const points = ends.map((one) => [coordinates[2 * one], coordinates[2 * one + 1]]);
    this.map.curves = [{ points, dashed: true, marks: points }];
    const place = this.data.worst.pairs.indexOf(k);
    const { times, parallel } = this.data.landmarks;
    if (place >= 0) {
      const from = place * times;
      const curve = Array.from({ length: times },
        (_, t) => [this.worst.seen[2 * (from + t)], this.worst.seen[2 * (from + t) + 1]]);
      this.map.curves.push({ points: curve, marks: curve.filter((_, t) => t > 0 && t % 4 === 0) });
    }
    this.map.drawOverlay();
    this.lengths([["Geodesic", brief(this.data.pairs.length[k]), "of this pair", "main"],
      ["Straight line", brief(this.data.pairs.straight[k]), ""]]);
    $("mark").textContent = this.data.pairs.converged[k]
      ? "" : "There is no curve: the geodesic did not reach its accuracy.";
    $("along").replaceChildren();
    $("parallel").replaceChildren();
    if (place < 0) return;
    const width = parallel.axes.length;
    this.drawParallel(Array.from({ length: times }, (_, t) => place * times + t), (row) =>
      Array.from(this.worst.curves.subarray(row * width, (row + 1) * width)));
  }

  answer() {
    const { landmarks } = this.data;
    const [a, b] = this.chosen;
    this.selects.forEach((select, which) => {
      select.value = String(this.chosen[which]);
    });
    this.buttons.forEach(({ button }, k) => {
      button.classList.toggle("chosen", k === a || k === b);
      button.setAttribute("aria-pressed", String(k === a || k === b));
    });
    const pair = landmarks.pairs.findIndex(([i, j]) =>
      (i === a && j === b) || (i === b && j === a));
    if (pair < 0) {
      this.map.curves = [];
      this.map.drawOverlay();
      this.lengths([["Geodesic", "0", "A and B are the same", "main"]]);
      $("mark").textContent = "";
      return;
    }
    const turned = landmarks.pairs[pair][0] !== a;
    const { times } = landmarks;
    const rows = Array.from({ length: times }, (_, t) => (turned ? times - 1 - t : t));
    const points = rows.map((t) => [0, 1].map((c) => this.seen[2 * (pair * times + t) + c]));
    this.map.curves = [
      { points: [points[0], points[times - 1]], dashed: true },
      { points, marks: points.filter((_, t) => t > 0 && t < times - 1 && t % 4 === 0) },
    ];
    this.map.drawOverlay();
    this.solution = { length: landmarks.length[pair] };
    const detour = landmarks.straight[pair] / landmarks.length[pair] - 1;
    this.lengths([
      ["Geodesic", `${brief(landmarks.length[pair])}`, `± ${brief(landmarks.error[pair])}`, "main"],
      ["Straight line", brief(landmarks.straight[pair]),
        Number.isFinite(detour) ? `${(100 * Math.max(0, detour)).toFixed(1)} % longer` : ""],
    ]);
    $("mark").textContent = landmarks.converged[pair]
      ? "" : "Do not trust this curve: it did not reach its accuracy.";
    this.showFrames(pair, turned);
    this.showParallel(pair, rows);
  }

  showFrames(pair, turned) {
    const box = $("along");
    box.replaceChildren();
    if (this.frames) {
      const { per } = this.data.frames;
      element(box, "h3", "", "Decoded along the geodesic");
      strip(element(box, "div", "strip"), per, (canvas, k) => {
        this.frames.show(canvas, pair * per + (turned ? per - 1 - k : k));
      });
    } else if (this.data.featureCurves) {
      const { names } = this.data.featureCurves;
      this.featureValues ||= unpack(this.data.featureCurves.values, Float32Array);
      const { times } = this.data.landmarks;
      element(box, "h3", "", "Decoded features along the geodesic");
      const lines = names.map((name, c) => {
        const values = Array.from({ length: times }, (_, t) =>
          this.featureValues[(pair * times + t) * names.length + c]);
        return { name, values: turned ? values.reverse() : values };
      });
      lineChart(element(box, "div"), lines, "Decoded features from A to B");
    }
  }

  showParallel(pair, rows) {
    const { parallel, times } = this.data.landmarks;
    const width = parallel.axes.length;
    this.drawParallel(rows.map((t) => pair * times + t), (k) =>
      Array.from(this.parallel.curves.subarray(k * width, (k + 1) * width)));
  }

  /** Every second of some rows of a curve, in front of the codes. */
  drawParallel(rows, coordinates) {
    const { parallel } = this.data.landmarks;
    const width = parallel.axes.length;
    const box = $("parallel");
    box.replaceChildren();
    element(box, "h3", "", "Latent coordinates along the geodesic, blue at A to orange at B; codes in grey");
    const behind = Array.from({ length: parallel.backgroundCount },
      (_, k) => Array.from(this.parallel.background.subarray(k * width, (k + 1) * width)));
    const curve = rows.filter((_, t) => t % 2 === 0).map(coordinates);
    parallelCoordinates(element(box, "div"), parallel.axes, parallel.low, parallel.high, behind, curve);
  }

  checked() {
    const { converged } = this.data.landmarks;
    const good = converged.filter(Boolean).length;
    element($("checked"), "p", "",
      `${good} of ${converged.length} geodesics among ${this.data.landmarks.index.length} landmarks ` +
      "reached their accuracy.");
  }
}

{
  const data = JSON.parse($("data").textContent);
  const kinds = { plane: PlanePage, line: LinePage, section: SectionPage };
  // For whoever wants to look closer in the browser's console.
  window.riemae = { page: new kinds[data.kind](data) };
}
