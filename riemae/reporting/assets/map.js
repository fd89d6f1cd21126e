/* The map: points, background and ellipses on one canvas, curves on another one above it, and
   buttons for the ends of a curve. Zooming and panning change the view; nothing is computed anew. */

/* Distinguishable with every kind of colour vision (seven of Okabe & Ito, three of Tol's muted
   ones); together with the shapes they make 60 classes. Dark ones are lighter on a dark map. */
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#767676",
  "#332288", "#882255", "#999933"];
const ON_DARK = { "#0072b2": "#3d9be0", "#767676": "#a8a8a8", "#332288": "#9488ee",
  "#882255": "#d4648f", "#009e73": "#25bd91" };
const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "down"];
const SCALE = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"]; // viridis

const darkness = window.matchMedia("(prefers-color-scheme: dark)");

/** The colour of a class. */
function colourOf(code) {
  const colour = COLOURS[code % COLOURS.length];
  const dark = darkness.matches && !document.documentElement.classList.contains("printing");
  return (dark && ON_DARK[colour]) || colour;
}

/** The shape of a class: another one when colours begin again. */
function shapeOf(code) {
  return SHAPES[(code + Math.floor(code / COLOURS.length)) % SHAPES.length];
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** A colour between those of a list, at share t. */
function between(colours, t) {
  const at = Math.min(Math.max(t, 0), 1) * (colours.length - 1);
  const k = Math.min(colours.length - 2, Math.floor(at));
  const [a, b] = [rgb(colours[k]), rgb(colours[k + 1])];
  return a.map((c, i) => Math.round(c + (at - k) * (b[i] - c)));
}

/** The outline of a marker, as a path of the canvas. */
function marker(context, shape, x, y, r) {
  context.beginPath();
  if (shape === "square") {
    context.rect(x - 0.88 * r, y - 0.88 * r, 1.76 * r, 1.76 * r);
  } else if (shape === "triangle" || shape === "down") {
    const up = shape === "triangle" ? 1 : -1;
    context.moveTo(x, y - 1.2 * up * r);
    context.lineTo(x + 1.1 * r, y + 0.8 * up * r);
    context.lineTo(x - 1.1 * r, y + 0.8 * up * r);
    context.closePath();
  } else if (shape === "diamond") {
    context.moveTo(x, y - 1.3 * r);
    context.lineTo(x + 1.1 * r, y);
    context.lineTo(x, y + 1.3 * r);
    context.lineTo(x - 1.1 * r, y);
    context.closePath();
  } else if (shape === "cross") {
    const [a, b] = [0.42 * r, 1.15 * r];
    const corners = [[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b],
      [-a, a], [-b, a], [-b, -a], [-a, -a]];
    corners.forEach(([p, q], k) => context[k ? "lineTo" : "moveTo"](x + p, y + q));
    context.closePath();
  } else {
    context.arc(x, y, r, 0, 2 * Math.PI);
  }
}

/** A colour that the style sheet names, which depends on light and dark. */
function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Four digits, without needless zeros. */
function brief(x) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return "∞";
  if (x !== 0 && (Math.abs(x) >= 1e5 || Math.abs(x) < 1e-3)) return x.toExponential(2);
  return String(Number(x.toPrecision(4)));
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(share * (sorted.length - 1))))];
}

/** Values at the nodes of a lattice, and between them; NaN next to what is not known. */
class Field {
  constructor(lattice, width = 1) {
    Object.assign(this, { low: lattice.low, high: lattice.high, counts: lattice.counts, width });
    this.values = unpack(lattice.values, Float32Array);
  }

  at(x, y, channel = 0) {
    const { values, width } = this;
    let total = 0;
    for (const [node, weight] of corners(this, x, y)) {
      if (weight > 0) total += weight * values[node * width + channel];
    }
    return total;
  }
}

/** The nodes around a point with their bilinear weights. */
function corners(lattice, x, y) {
  const [nx, ny] = lattice.counts;
  const part = (value, a, n) => {
    if (n === 1) return [0, 0];
    const at = ((value - lattice.low[a]) / (lattice.high[a] - lattice.low[a])) * (n - 1);
    const k = Math.min(n - 2, Math.max(0, Math.floor(at)));
    return [k, Math.min(1, Math.max(0, at - k))];
  };
  const [i, u] = part(x, 0, nx);
  const [j, v] = part(y, 1, ny);
  const node = i * ny + j;
  const right = nx > 1 ? ny : 0;
  const up = ny > 1 ? 1 : 0;
  return [[node, (1 - u) * (1 - v)], [node + up, (1 - u) * v], [node + right, u * (1 - v)],
    [node + right + up, u * v]];
}

function onPaper() {
  return document.documentElement.classList.contains("printing");
}

class PlotMap {
  /** @param root the element, @param page what to draw: points, table, backgrounds */
  constructor(root, page) {
    this.root = root;
    this.page = page;
    this.base = root.querySelector(".base");
    this.overlay = root.querySelector(".overlay");
    this.tooltip = root.querySelector(".tooltip");
    this.hidden = new Set();
    this.background = "volume";
    this.ellipses = false;
    this.curves = [];
    this.hover = -1;
    this.rasters = new Map();
    this.fit();
    new ResizeObserver(() => this.resize()).observe(root);
    darkness.addEventListener("change", () => this.repaint());
    // Paper is light, whatever the screen is.
    for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
      window.addEventListener(event, () => {
        document.documentElement.classList.toggle("printing", printing);
        this.repaint();
      });
    }
    this.listen();
  }

  /** Everything in other colours, at once: a printer does not wait for the next picture. */
  repaint() {
    this.rasters.clear();
    this.page.classButtons();
    this.drawAll();
  }

  drawAll() {
    this.drawBase();
    this.drawOverlay();
    this.page.moved();
  }

  /** Shows everything. */
  fit() {
    const { low, high } = this.page.extent;
    this.center = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
    this.zoom = 1;
  }

  resize() {
    const { width, height } = this.root.getBoundingClientRect();
    if (!width || !height) return;
    const density = window.devicePixelRatio || 1;
    for (const canvas of [this.base, this.overlay]) {
      canvas.width = Math.round(width * density);
      canvas.height = Math.round(height * density);
      canvas.getContext("2d").setTransform(density, 0, 0, density, 0, 0);
    }
    this.width = width;
    this.height = height;
    // Paper has another size than the screen, and no next picture.
    if (onPaper()) this.drawAll();
    else this.draw();
  }

  /** Pixels per unit; the same along both axes. */
  get scale() {
    const { low, high } = this.page.extent;
    const fit = Math.min(this.width / (high[0] - low[0]), this.height / (high[1] - low[1]));
    return fit * this.zoom;
  }

  toScreen(x, y) {
    const k = this.scale;
    return [this.width / 2 + (x - this.center[0]) * k, this.height / 2 - (y - this.center[1]) * k];
  }

  toPlane(px, py) {
    const k = this.scale;
    return [this.center[0] + (px - this.width / 2) / k, this.center[1] - (py - this.height / 2) / k];
  }

  zoomAt(factor, px = this.width / 2, py = this.height / 2) {
    const fixed = this.toPlane(px, py);
    this.zoom = Math.min(200, Math.max(0.5, this.zoom * factor));
    const moved = this.toPlane(px, py);
    this.center = this.center.map((c, a) => c + fixed[a] - moved[a]);
    this.draw();
  }

  listen() {
    const pointers = new Map();
    let spread = 0;
    const place = (event) => {
      const box = this.root.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    this.overlay.addEventListener("pointerdown", (event) => {
      this.overlay.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, place(event));
      this.root.classList.add("panning");
    });
    this.overlay.addEventListener("pointermove", (event) => {
      const now = place(event);
      const before = pointers.get(event.pointerId);
      if (!before) {
        this.hoverAt(...now);
        return;
      }
      pointers.set(event.pointerId, now);
      if (pointers.size === 1) {
        this.center[0] -= (now[0] - before[0]) / this.scale;
        this.center[1] += (now[1] - before[1]) / this.scale;
        this.draw();
      } else {
        const [p, q] = [...pointers.values()];
        const size = Math.hypot(p[0] - q[0], p[1] - q[1]);
        if (spread) this.zoomAt(size / spread, (p[0] + q[0]) / 2, (p[1] + q[1]) / 2);
        spread = size;
      }
    });
    const release = (event) => {
      if (pointers.delete(event.pointerId) && event.pointerType === "touch") {
        this.hoverAt(...place(event));
      }
      spread = 0;
      if (!pointers.size) this.root.classList.remove("panning");
    };
    this.overlay.addEventListener("pointerup", release);
    this.overlay.addEventListener("pointercancel", release);
    this.overlay.addEventListener("pointerleave", () => this.hoverAt(-1e9, -1e9));
    // The wheel scrolls the page; with Ctrl, as for any zooming, it zooms.
    this.root.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoomAt(Math.exp(-event.deltaY / 300), ...place(event));
    }, { passive: false });
    this.overlay.addEventListener("dblclick", (event) => this.zoomAt(2, ...place(event)));
  }

  /** The drawn point next to a place on the screen, within a reach in pixels; -1 for none. */
  nearest(px, py, reach) {
    const { coordinates, codes } = this.page.points;
    const [x, y] = this.toPlane(px, py);
    let best = -1;
    let least = (reach / this.scale) ** 2;
    for (let i = 0; 2 * i < coordinates.length; i++) {
      if (codes.length && this.hidden.has(codes[i])) continue;
      const square = (coordinates[2 * i] - x) ** 2 + (coordinates[2 * i + 1] - y) ** 2;
      if (square < least) {
        least = square;
        best = i;
      }
    }
    return best;
  }

  hoverAt(px, py) {
    const found = this.nearest(px, py, 14);
    if (found === this.hover) return;
    this.hover = found;
    this.drawOverlay();
    this.tooltip.hidden = found < 0;
    if (found < 0) return;
    this.page.describe(found, this.tooltip);
    const { coordinates } = this.page.points;
    const [sx, sy] = this.toScreen(coordinates[2 * found], coordinates[2 * found + 1]);
    const box = this.tooltip.getBoundingClientRect();
    const left = sx + 16 + box.width > this.width ? sx - 16 - box.width : sx + 16;
    const top = Math.min(Math.max(4, sy - box.height / 2), this.height - box.height - 4);
    this.tooltip.style.left = `${Math.max(4, left)}px`;
    this.tooltip.style.top = `${top}px`;
  }

  draw() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      if (this.width) this.drawAll();
    });
  }

  drawBase() {
    const context = this.base.getContext("2d");
    context.fillStyle = themed("--map");
    context.fillRect(0, 0, this.width, this.height);
    this.drawBackground(context);
    this.drawAxes(context);
    if (this.ellipses) this.drawEllipses(context);
    this.drawSides(context);
    this.drawPoints(context);
  }

  drawBackground(context) {
    const raster = this.raster();
    this.page.legend(raster);
    if (!raster) return;
    const { low, high } = raster;
    const [left, top] = this.toScreen(low[0], high[1]);
    const k = this.scale;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(raster.canvas, left, top, (high[0] - low[0]) * k, (high[1] - low[1]) * k);
  }

  /** The picture of a background with the range of its values; computed once. */
  raster() {
    const chosen = this.page.backgrounds.find((one) => one.key === this.background);
    if (!chosen) return null;
    if (!this.rasters.has(chosen.key)) this.rasters.set(chosen.key, this.paint(chosen));
    return this.rasters.get(chosen.key);
  }

  paint(chosen) {
    const { low, high } = chosen;
    const n = 160;
    const values = new Float64Array(n * n);
    for (let row = 0; row < n; row++) {
      const y = high[1] - ((row + 0.5) / n) * (high[1] - low[1]);
      for (let column = 0; column < n; column++) {
        const x = low[0] + ((column + 0.5) / n) * (high[0] - low[0]);
        values[row * n + column] = chosen.at(x, y);
      }
    }
    const sorted = [...values].filter(Number.isFinite).sort((a, b) => a - b);
    if (!sorted.length) return null;
    let range = [quantile(sorted, 0.02), quantile(sorted, 0.98)];
    if (chosen.diverging) {
      const size = Math.max(Math.abs(range[0]), Math.abs(range[1])) || 1;
      range = [-size, size];
    }
    if (!(range[1] > range[0])) range[1] = range[0] + 1e-9 + Math.abs(range[0]) * 1e-9;
    const colours = chosen.diverging
      ? [themed("--negative"), themed("--middle"), themed("--positive")]
      : [themed("--ramp-low"), themed("--ramp-high")];
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = n;
    const context = canvas.getContext("2d");
    const image = context.createImageData(n, n);
    for (let i = 0; i < n * n; i++) {
      const value = values[i];
      if (!Number.isFinite(value)) continue; // transparent: the metric is not known there
      const colour = between(colours, (value - range[0]) / (range[1] - range[0]));
      image.data.set([...colour, 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
    return { canvas, low, high, range, colours, background: chosen };
  }

  drawAxes(context) {
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = themed("--quiet");
    context.strokeStyle = themed("--grid");
    context.lineWidth = 1;
    const span = this.width / this.scale;
    const rough = (span / this.width) * 90;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((c) => c * power).find((s) => s >= rough);
    const [x0, y1] = this.toPlane(0, 0);
    const [x1, y0] = this.toPlane(this.width, this.height);
    const [horizontal, vertical] = this.page.axes;
    const free = this.width - context.measureText(horizontal).width - 34;
    const text = (value) => brief(Math.abs(value) < step / 2 ? 0 : value);
    for (let x = Math.ceil(x0 / step) * step; x <= x1; x += step) {
      const [px] = this.toScreen(x, 0);
      line(context, px, this.height - 5, px, this.height);
      if (px > 30 && px < free) context.fillText(text(x), px + 3, this.height - 5);
    }
    // On a page about a line only the horizontal axis means something.
    const rows = this.page.data.m > 1 ? y1 : -Infinity;
    for (let y = Math.ceil(y0 / step) * step; y <= rows; y += step) {
      const [, py] = this.toScreen(0, y);
      line(context, 0, py, 5, py);
      if (py > 20 && py < this.height - 30) context.fillText(text(y), 7, py + 4);
    }
    context.textAlign = "right";
    context.fillText(horizontal, this.width - 6, this.height - 5);
    context.textAlign = "left";
    context.fillText(vertical, 7, 14);
  }

  /* Circles of the metric on a lattice of the view: the same step in the data, seen in the plot. */
  drawEllipses(context) {
    const { table } = this.page;
    if (!table) return;
    const gap = Math.max(44, Math.min(this.width, this.height) / 11);
    const found = [];
    for (let px = gap / 2; px < this.width; px += gap) {
      for (let py = gap / 2; py < this.height; py += gap) {
        const [x, y] = this.toPlane(px, py);
        if (!table.inside(x, y)) continue;
        const jet = table.expand(x, y, 0);
        const [s, d, b] = [jet[0], jet[6], jet[12]];
        const r = Math.hypot(d, b);
        // Half axes of vᵀ G v = 1, and the direction in which a step matters most.
        found.push([px, py, Math.exp(-(s + r) / 2), Math.exp(-(s - r) / 2), Math.atan2(b, d) / 2]);
      }
    }
    if (!found.length) return;
    const sizes = found.map((e) => Math.sqrt(e[2] * e[3])).sort((a, b) => a - b);
    const unit = (0.36 * gap) / quantile(sizes, 0.5);
    context.strokeStyle = themed("--ellipse");
    context.lineWidth = 1.2;
    for (const [px, py, short, long, angle] of found) {
      const fits = Math.min(1, (0.9 * gap) / (long * unit)); // drawn smaller, and dashed
      context.setLineDash(fits < 1 ? [3, 3] : []);
      context.beginPath();
      // y points down on the screen.
      context.ellipse(px, py, Math.max(0.4, short * unit * fits), long * unit * fits, -angle, 0,
        2 * Math.PI);
      context.stroke();
    }
    context.setLineDash([]);
  }

  drawPoints(context) {
    const { coordinates, codes, values, count } = this.page.points;
    const radius = Math.max(2.2, Math.min(5, 90 / Math.sqrt(count))) * Math.min(1.8, this.zoom ** 0.3);
    context.lineWidth = 0.7;
    context.strokeStyle = themed("--map");
    for (let i = 0; 2 * i < coordinates.length; i++) {
      const code = codes.length ? codes[i] : -1;
      if (this.hidden.has(code)) continue;
      const [px, py] = this.toScreen(coordinates[2 * i], coordinates[2 * i + 1]);
      if (px < -9 || py < -9 || px > this.width + 9 || py > this.height + 9) continue;
      if (values.length) {
        const [low, high] = this.page.points.range;
        context.fillStyle = `rgb(${between(SCALE, (values[i] - low) / (high - low || 1))})`;
      } else {
        context.fillStyle = code < 0 ? themed("--point") : colourOf(code);
      }
      marker(context, code < 0 ? "circle" : shapeOf(code), px, py, radius);
      context.fill();
      context.stroke();
    }
  }

  /* A curve with all its copies, whole periods away, that reach into the map: a curve that leaves
     it on one side comes in on the other. */
  copiesOf(curve) {
    const { extent, periods } = this.page;
    if (!periods.some(Boolean) || !curve.points.length) return [curve];
    let shifts = [[0, 0]];
    periods.forEach((period, a) => {
      if (!period) return;
      const values = curve.points.map((point) => point[a]);
      const first = Math.ceil((extent.low[a] - Math.max(...values)) / period);
      const last = Math.floor((extent.high[a] - Math.min(...values)) / period);
      const turns = Array.from({ length: Math.max(0, last - first + 1) }, (_, k) => first + k);
      shifts = shifts.flatMap((shift) => turns.map((turn) => {
        const moved = [...shift];
        moved[a] = turn * period;
        return moved;
      }));
    });
    const move = (points, shift) => points.map((point) => point.map((c, a) => c + shift[a]));
    return shifts.map((shift) => ({
      ...curve, points: move(curve.points, shift), marks: move(curve.marks || [], shift),
    }));
  }

  /** Nothing is drawn beyond the sides that are the same. */
  clipToPeriods(context) {
    const { extent: { low, high }, periods } = this.page;
    const [left, top] = this.toScreen(low[0], high[1]);
    const [right, bottom] = this.toScreen(high[0], low[1]);
    const [x0, x1] = periods[0] ? [left, right] : [0, this.width];
    const [y0, y1] = periods[1] ? [top, bottom] : [0, this.height];
    context.beginPath();
    context.rect(x0, y0, x1 - x0, y1 - y0);
    context.clip();
  }

  /** The sides that are the same, dashed. */
  drawSides(context) {
    const { extent: { low, high }, periods } = this.page;
    context.strokeStyle = themed("--quiet");
    context.lineWidth = 1;
    context.setLineDash([2, 4]);
    for (const side of [low, high]) {
      const [px, py] = this.toScreen(side[0], side[1]);
      if (periods[0]) line(context, px, 0, px, this.height);
      if (periods[1]) line(context, 0, py, this.width, py);
    }
    context.setLineDash([]);
  }

  /** What stands in buttons on the screen, which do not move to where the paper has them. */
  drawNames(context) {
    context.font = "bold 12px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [name, place] of this.page.named()) {
      const at = this.toScreen(...place);
      context.lineWidth = 6;
      context.strokeStyle = themed("--halo");
      context.strokeText(name, ...at);
      context.fillStyle = themed("--curve");
      context.fillText(name, ...at);
    }
  }

  drawOverlay() {
    // On paper there is one canvas: clearing a second one would erase what lies below it.
    const context = (onPaper() ? this.base : this.overlay).getContext("2d");
    if (!onPaper()) context.clearRect(0, 0, this.width, this.height);
    context.save();
    this.clipToPeriods(context);
    for (const { points, dashed, marks, faint } of this.curves.flatMap((c) => this.copiesOf(c))) {
      const path = () => {
        context.beginPath();
        points.forEach(([x, y], k) => context[k ? "lineTo" : "moveTo"](...this.toScreen(x, y)));
      };
      context.lineJoin = context.lineCap = "round";
      context.setLineDash([]);
      path();
      context.strokeStyle = themed("--halo");
      context.lineWidth = dashed || faint ? 4 : 6;
      context.stroke();
      path();
      context.setLineDash(dashed ? [7, 6] : []);
      context.strokeStyle = themed(dashed ? "--line" : "--curve");
      context.lineWidth = dashed || faint ? 1.8 : 3;
      context.stroke();
      context.setLineDash([]);
      for (const [x, y] of marks || []) {
        const [px, py] = this.toScreen(x, y);
        marker(context, "circle", px, py, 3.2);
        context.fillStyle = themed("--halo");
        context.fill();
        context.strokeStyle = themed("--curve");
        context.lineWidth = 1.6;
        context.stroke();
      }
    }
    context.restore();
    if (onPaper()) this.drawNames(context);
    else if (this.hover >= 0) {
      const { coordinates } = this.page.points;
      const at = this.toScreen(coordinates[2 * this.hover], coordinates[2 * this.hover + 1]);
      marker(context, "circle", ...at, 9);
      context.strokeStyle = themed("--ink");
      context.lineWidth = 2;
      context.stroke();
    }
  }
}

function line(context, x0, y0, x1, y1) {
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1, y1);
  context.stroke();
}

/* A button on the map that can be dragged with a pointer and moved with the arrow keys: one pixel,
   or ten with Shift. Enter puts it on the nearest point. */
class Handle {
  constructor(map, button, position, changed) {
    Object.assign(this, { map, button, position, changed });
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      button.focus();
      event.preventDefault();
    });
    button.addEventListener("pointermove", (event) => {
      if (!button.hasPointerCapture(event.pointerId)) return;
      const box = map.root.getBoundingClientRect();
      this.moveTo(map.toPlane(event.clientX - box.left, event.clientY - box.top));
    });
    button.addEventListener("keydown", (event) => {
      const step = (event.shiftKey ? 20 : 4) / map.scale;
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      if (way[event.key]) {
        this.moveTo(this.position.map((c, a) => c + step * way[event.key][a]));
      } else if (event.key === "Enter") {
        const found = map.nearest(...map.toScreen(...this.position), 1e6);
        const { coordinates } = map.page.points;
        if (found >= 0) this.moveTo([coordinates[2 * found], coordinates[2 * found + 1]]);
      } else {
        return;
      }
      event.preventDefault();
    });
  }

  moveTo(position) {
    const { extent: { low, high }, periods } = this.map.page;
    // Beyond a side that comes round is its other side.
    this.position = home({ low, periods }, position)
      .map((c, a) => Math.min(high[a], Math.max(low[a], c)));
    this.show();
    this.changed(this);
  }

  show() {
    const [px, py] = this.map.toScreen(...this.position);
    this.button.style.left = `${px}px`;
    this.button.style.top = `${py}px`;
    this.button.hidden = px < -20 || py < -20 || px > this.map.width + 20 || py > this.map.height + 20;
  }
}
