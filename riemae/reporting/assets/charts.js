/* Small drawings next to the map: decoded images along a curve, decoded features, and parallel
   coordinates. Everything that comes from a user goes into text nodes, never into markup. */

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 3", "12 3", "4 2", "10 2 2 2"];

/** An SVG element with attributes, in a parent. */
function shape(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

/** An HTML element with a class and text, in a parent. */
function element(parent, name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

/** Long names are shortened in the middle: they often begin alike. */
function clipped(name, most) {
  const letters = [...name];
  if (letters.length <= most) return name;
  const tail = Math.floor(most / 3);
  return `${letters.slice(0, most - tail - 1).join("")}…${letters.slice(-tail).join("")}`;
}

/** Tiles of one picture. */
class Tiles {
  constructor(sheet, ready) {
    Object.assign(this, sheet);
    this.image = new Image();
    this.image.addEventListener("load", ready);
    this.image.src = sheet.source;
  }

  get ready() {
    return this.image.complete && this.image.naturalWidth > 0;
  }

  paint(context, tile, weight) {
    const { width, height, columns } = this;
    context.globalAlpha = weight;
    context.drawImage(this.image, (tile % columns) * width, Math.floor(tile / columns) * height,
      width, height, 0, 0, width, height);
  }

  /** One tile. */
  show(canvas, tile) {
    this.blend(canvas, [[tile, 1]]);
  }

  /** The weighted sum of tiles. */
  blend(canvas, parts) {
    canvas.width = this.width;
    canvas.height = this.height;
    if (!this.ready) return;
    const context = canvas.getContext("2d");
    context.globalCompositeOperation = "lighter"; // sums, so that weights of 1 give an image
    for (const [tile, weight] of parts) if (weight > 0) this.paint(context, tile, weight);
  }
}

/** A row of images; the canvases are made once. */
function strip(parent, count, show) {
  while (parent.children.length > count) parent.lastChild.remove();
  while (parent.children.length < count) element(parent, "canvas", "frame");
  [...parent.children].forEach((canvas, k) => show(canvas, k));
}

/** Lines over the way from A to B. Each entry of lines has a name and values. */
function lineChart(parent, lines, label) {
  parent.replaceChildren();
  const [width, height, left, right, top, bottom] = [380, 200, 44, 112, 10, 22];
  const svg = shape(parent, "svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label,
  });
  const all = lines.flatMap((one) => one.values).filter(Number.isFinite);
  if (!all.length) return;
  const low = Math.min(...all);
  const high = Math.max(...all) > low ? Math.max(...all) : low + 1;
  const x = (t) => left + t * (width - left - right);
  const y = (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
  for (const share of [0, 0.5, 1]) {
    const value = low + share * (high - low);
    shape(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) });
    shape(svg, "text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, brief(value));
  }
  shape(svg, "text", { x: left, y: height - 6, "text-anchor": "middle" }, "A");
  shape(svg, "text", { x: width - right, y: height - 6, "text-anchor": "middle" }, "B");
  // Names at the ends of their lines, moved apart.
  const last = (values) => values.filter(Number.isFinite).pop() ?? low;
  const places = lines.map((one, k) => [y(last(one.values)), k]).sort((p, q) => p[0] - q[0]);
  const rows = new Map();
  let free = top;
  for (const [at, k] of places) {
    const row = Math.max(at, free);
    rows.set(k, row);
    free = row + 13;
  }
  const over = Math.max(0, free - 13 - (height - bottom));
  lines.forEach(({ name, values }, k) => {
    const points = values
      .map((v, i) => [x(values.length > 1 ? i / (values.length - 1) : 0), y(v)])
      .filter((p) => Number.isFinite(p[1]));
    const style = {
      class: "curve", stroke: colourOf(k), "stroke-dasharray": DASHES[k % 8],
    };
    shape(svg, "polyline", { ...style, points: points.map((p) => p.join(",")).join(" ") });
    const row = rows.get(k) - over;
    shape(svg, "line", { ...style, x1: width - right + 4, x2: width - right + 22, y1: row, y2: row });
    const text = shape(svg, "text", { x: width - right + 26, y: row + 4 }, clipped(name, 13));
    shape(text, "title", {}, name);
  });
}

/** One axis per latent coordinate: codes in the back, the points of a curve from A to B in front. */
function parallelCoordinates(parent, names, low, high, background, curve) {
  parent.replaceChildren();
  const [width, height, left, top, bottom] = [460, 220, 26, 14, 24];
  const svg = shape(parent, "svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "Latent coordinates along the geodesic, from A to B",
  });
  const x = (j) => left + (j * (width - 2 * left)) / Math.max(1, names.length - 1);
  const y = (v, j) => {
    const share = high[j] > low[j] ? (v - low[j]) / (high[j] - low[j]) : 0.5;
    return top + (1 - Math.min(1.06, Math.max(-0.06, share))) * (height - top - bottom);
  };
  const path = (row) => row.map((v, j) => `${x(j).toFixed(1)},${y(v, j).toFixed(1)}`).join(" ");
  for (const row of background) shape(svg, "polyline", { class: "behind", points: path(row) });
  names.forEach((name, j) => {
    shape(svg, "line", { class: "axis", x1: x(j), x2: x(j), y1: top, y2: height - bottom });
    if (names.length <= 16 || j % 2 === 0) {
      shape(svg, "text", { x: x(j), y: height - 8, "text-anchor": "middle" }, `z${name}`);
    }
  });
  curve.forEach((row, k) => {
    const [r, g, b] = between(["#0072b2", "#d55e00"], k / Math.max(1, curve.length - 1));
    const ends = k === 0 || k === curve.length - 1;
    shape(svg, "polyline", {
      class: ends ? "curve strong" : "curve", stroke: `rgb(${r},${g},${b})`, points: path(row),
    });
  });
}
