"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const count = data.videos.length;
const anyPicture = data.thumbnails.some(Boolean);
const WIDTH = 1000, HEIGHT = 720, MARGIN = 34; // of the map, in its own units
const RADIUS = count <= 300 ? 8 : count <= 1000 ? 6 : 4.5;
const REACH = 22; // how far from a point a click still means it
const RAMP = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
const state = { layer: 0, map: "pca", order: "", selected: null, group: null, found: null, zoom: 1, x: 0, y: 0, cell: null };

// Names are only ever set as text, never as HTML.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function colour(group) {
  if (group < 0) return data.kind ? "var(--none)" : "var(--accent)";
  const many = data.groups.length > 10; // then hues alone are too close
  const hue = many ? (group * 137.5) % 360 : 25 + (group * 360) / data.groups.length;
  return `oklch(calc(var(--lightness) + ${many ? 0.09 * ((group % 3) - 1) : 0}) .16 ${hue})`;
}

const groupName = (group) => (group < 0 ? `no ${data.kind}` : data.groups[group]);
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const layer = () => data.layers[state.layer];

function dot(group) {
  const made = element("span", { className: "dot" });
  made.style.background = colour(group);
  return made;
}

function groupLine(video) {
  const group = data.groupOf[video];
  return data.kind ? element("span", { className: "group" }, dot(group), groupName(group)) : null;
}

function picture(video) {
  const bytes = data.thumbnails[video];
  if (bytes) {
    return element("img", { className: "picture", alt: `middle frame of ${data.videos[video]}`, src: `data:image/jpeg;base64,${bytes}` });
  }
  return anyPicture ? element("span", { className: "picture", textContent: "no picture" }) : null;
}

// The map ------------------------------------------------------------------------------------------------------------

const map = $("map");
const points = data.videos.map((name, video) => {
  const point = drawn("circle", { class: "point", r: RADIUS, id: `video-${video}`, role: "option", "aria-label": name });
  point.dataset.video = video;
  point.style.fill = colour(data.groupOf[video]);
  return point;
});
$("points").classList.toggle("many", count > 1000);
// In an order of chance, the same each time, so that no group hides the others.
$("points").append(...points.map((point, video) => [(video * 2654435761) % 4294967296, point]).sort((a, b) => a[0] - b[0]).map((pair) => pair[1]));

// Both axes have the same scale: as large as the map can show.
function place(video) {
  const [x, y] = layer()[state.map][video], [reachX, reachY] = reaches();
  const scale = state.zoom * Math.min((WIDTH / 2 - MARGIN) / reachX, (HEIGHT / 2 - MARGIN) / reachY);
  return [WIDTH / 2 + state.x + x * scale, HEIGHT / 2 + state.y - y * scale];
}

function reaches() {
  const shown = layer()[state.map];
  shown.reaches ??= [0, 1].map((axis) => shown.reduce((most, point) => Math.max(most, Math.abs(point[axis])), 1e-9));
  return shown.reaches;
}

function drawMap(smoothly = false) {
  map.classList.toggle("moving", smoothly && count <= 1000);
  points.forEach((point, video) => {
    const [x, y] = place(video);
    point.setAttribute("cx", x.toFixed(1));
    point.setAttribute("cy", y.toFixed(1));
  });
  drawSelection();
}

function drawSelection() {
  const near = new Set(state.selected === null ? [] : layer().neighbours[state.selected]);
  points.forEach((point, video) => {
    const hidden = (state.found && !state.found.has(video)) || (state.group !== null && data.groupOf[video] !== state.group);
    point.classList.toggle("dim", Boolean(hidden) && video !== state.selected && !near.has(video));
    point.classList.toggle("near", near.has(video));
    point.setAttribute("aria-selected", String(video === state.selected));
  });
  $("edges").replaceChildren();
  $("marks").replaceChildren();
  if (state.selected === null) {
    map.removeAttribute("aria-activedescendant");
    return;
  }
  map.setAttribute("aria-activedescendant", `video-${state.selected}`);
  const [x, y] = place(state.selected);
  $("marks").append(drawn("circle", { cx: x, cy: y, r: RADIUS + 5 }));
  for (const other of near) {
    const [otherX, otherY] = place(other);
    $("edges").append(drawn("line", { x1: x, y1: y, x2: otherX, y2: otherY }));
  }
}

function inMap(event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
}

function videoAt(event) {
  if (event.target.dataset.video !== undefined) return Number(event.target.dataset.video);
  const at = inMap(event);
  let best = null, least = REACH;
  for (let video = 0; video < count; video++) {
    if (points[video].classList.contains("dim")) continue;
    const [x, y] = place(video);
    const distance = Math.hypot(x - at.x, y - at.y);
    if (distance < least) [best, least] = [video, distance];
  }
  return best;
}

function zoomAt(factor, x = WIDTH / 2, y = HEIGHT / 2) {
  const zoom = Math.min(200, Math.max(1, state.zoom * factor));
  factor = zoom / state.zoom;
  state.x = x - WIDTH / 2 - (x - WIDTH / 2 - state.x) * factor;
  state.y = y - HEIGHT / 2 - (y - HEIGHT / 2 - state.y) * factor;
  state.zoom = zoom;
  if (zoom === 1) state.x = state.y = 0;
  drawMap();
}

function fit() {
  [state.zoom, state.x, state.y] = [1, 0, 0];
  drawMap(true);
}

function showTip(video) {
  if (video === null) {
    $("tip").hidden = true;
    return;
  }
  $("tip").replaceChildren(
    ...[data.thumbnails[video] ? picture(video) : null, element("div", { textContent: data.videos[video] }), groupLine(video)].filter(Boolean));
  $("tip").hidden = false;
  const stage = $("stage").getBoundingClientRect(), box = points[video].getBoundingClientRect(), tip = $("tip").getBoundingClientRect();
  const left = box.right - stage.left + 8, above = box.top - stage.top - tip.height / 2;
  $("tip").style.left = `${left + tip.width > stage.width ? Math.max(0, box.left - stage.left - tip.width - 8) : left}px`;
  $("tip").style.top = `${Math.max(0, Math.min(above, stage.height - tip.height))}px`;
}

let drag = null;
let dragged = false; // a click at the end of a drag is none
map.addEventListener("pointerdown", (event) => {
  dragged = false;
  if (event.button === 0) drag = { id: event.pointerId, at: inMap(event), x: state.x, y: state.y };
});
map.addEventListener("pointermove", (event) => {
  if (!drag || drag.id !== event.pointerId) {
    showTip(videoAt(event));
    return;
  }
  const at = inMap(event), x = at.x - drag.at.x, y = at.y - drag.at.y;
  if (!dragged && Math.hypot(x, y) < 6) return;
  if (!dragged) map.setPointerCapture(drag.id); // not earlier: a click would then be one of the map, not of a point
  dragged = true;
  map.classList.add("dragged");
  showTip(null);
  [state.x, state.y] = [drag.x + x, drag.y + y];
  drawMap();
});
for (const end of ["pointerup", "pointercancel"]) {
  map.addEventListener(end, () => {
    map.classList.remove("dragged");
    drag = null;
  });
}
map.addEventListener("pointerleave", () => showTip(null));
map.addEventListener("click", (event) => {
  if (!dragged) select(videoAt(event));
});
map.addEventListener("dblclick", (event) => zoomAt(2, inMap(event).x, inMap(event).y));
map.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // else the page would not scroll past the map
  event.preventDefault();
  zoomAt(Math.exp(-event.deltaY / 200), inMap(event).x, inMap(event).y);
}, { passive: false });
map.addEventListener("keydown", (event) => {
  const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
  const does = { "+": () => zoomAt(1.5), "=": () => zoomAt(1.5), "-": () => zoomAt(1 / 1.5), 0: fit, Home: () => select(0),
    Enter: () => select(state.selected ?? 0), Escape: () => select(null) }[event.key];
  if (event.ctrlKey || event.metaKey || event.altKey || (!way && !does)) return;
  event.preventDefault();
  if (does) does();
  else select(state.selected === null ? 0 : towards(...way));
});
$("zoom-in").addEventListener("click", () => zoomAt(1.5));
$("zoom-out").addEventListener("click", () => zoomAt(1 / 1.5));
$("zoom-fit").addEventListener("click", fit);

// The nearest video in a direction; what lies beside it counts as farther away.
function towards(stepX, stepY) {
  const [x, y] = place(state.selected);
  let best = state.selected, least = Infinity;
  for (let video = 0; video < count; video++) {
    if (points[video].classList.contains("dim")) continue;
    const [otherX, otherY] = place(video);
    const ahead = (otherX - x) * stepX + (otherY - y) * stepY;
    const aside = Math.abs((otherX - x) * stepY) + Math.abs((otherY - y) * stepX);
    if (ahead > 0.5 && aside <= 2 * ahead && ahead + 2 * aside < least) [best, least] = [video, ahead + 2 * aside];
  }
  return best;
}

// The chosen video ---------------------------------------------------------------------------------------------------

function select(video) {
  state.selected = video;
  drawSelection();
  drawPanel();
  drawMatrix();
}

function drawPanel() {
  const video = state.selected;
  $("hint").hidden = video !== null;
  $("chosen").hidden = video === null;
  if (video === null) return;
  $("chosen-video").replaceChildren(
    ...[picture(video), element("div", {}, element("strong", { id: "chosen-name", textContent: data.videos[video] }), groupLine(video))].filter(Boolean));
  const near = layer().neighbours[video], similar = layer().similarities[video];
  const least = Math.min(...similar, layer().matrices[state.order].low);
  $("neighbours-title").textContent = near.length === 1 ? "The other video" : `The ${near.length} most similar videos`;
  $("neighbours").classList.toggle("pictures", anyPicture);
  $("neighbours").replaceChildren(...near.map((other, rank) => {
    const bar = element("i");
    bar.style.width = `${(100 * (similar[rank] - least)) / Math.max(1 - least, 1e-9)}%`;
    const button = element("button", { type: "button", title: data.videos[other] },
      picture(other), element("span", { className: "name", textContent: data.videos[other] }), groupLine(other),
      element("span", { className: "bar" }, bar), element("span", { className: "value", textContent: similar[rank].toFixed(3) }));
    button.dataset.video = other;
    button.addEventListener("click", () => select(other));
    return element("li", {}, button);
  }));
}

// The matrix ---------------------------------------------------------------------------------------------------------

const canvas = $("matrix");
const STRIP = 12; // pixels of the colours of the groups along two sides
const levels = new Map(); // of a layer and an order: a promise of the numbers in its picture

function readLevels(png) {
  if (!levels.has(png)) {
    levels.set(png, (async () => {
      const image = new Image();
      image.src = `data:image/png;base64,${png}`;
      await image.decode();
      const sheet = element("canvas", { width: image.width, height: image.height });
      const context = sheet.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, image.width, image.height);
      const values = new Uint8Array(image.width * image.height);
      const ramp = rampColours();
      for (let cell = 0; cell < values.length; cell++) {
        values[cell] = pixels.data[4 * cell];
        pixels.data.set(ramp[values[cell]], 4 * cell);
      }
      // A video with itself is 1, and no news.
      if (image.width === count) for (let place = 0; place < count; place++) pixels.data[4 * place * (count + 1) + 3] = 0;
      context.putImageData(pixels, 0, 0);
      return { side: image.width, values, canvas: sheet };
    })());
  }
  return levels.get(png);
}

function rampColours() {
  const stops = RAMP.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, level) => {
    const at = (level / 255) * (stops.length - 1), below = Math.min(Math.floor(at), stops.length - 2);
    return stops[below].map((value, channel) => Math.round(value + (at - below) * (stops[below + 1][channel] - value)));
  });
}

const matrix = () => layer().matrices[state.order];

async function drawMatrix() {
  const shown = matrix(), sheet = await readLevels(shown.png);
  if (shown !== matrix()) return; // another was chosen meanwhile
  const strip = data.kind ? STRIP : 0, width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(width * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const side = width - strip;
  context.imageSmoothingEnabled = sheet.side > side * scale;
  context.drawImage(sheet.canvas, strip, strip, side, side);
  if (strip) {
    const colours = new Map(data.groupOf.map((group, video) => [group, points[video]])); // one point of each group
    for (const [group, point] of colours) colours.set(group, getComputedStyle(point).fill);
    shown.order.forEach((video, at) => {
      context.fillStyle = colours.get(data.groupOf[video]);
      const from = strip + (at * side) / count, size = side / count + 0.5;
      context.fillRect(0, from, strip - 3, size);
      context.fillRect(from, 0, size, strip - 3);
    });
  }
  const cell = side / sheet.side;
  context.lineWidth = 1.5;
  if (state.selected !== null) {
    const at = Math.floor(((shown.order.indexOf(state.selected) + 0.5) * sheet.side) / count);
    context.strokeStyle = "#fff";
    context.strokeRect(strip, strip + at * cell, side, cell);
  }
  if (state.cell) {
    context.strokeStyle = "#ff5a36";
    context.strokeRect(strip + state.cell[1] * cell, strip + state.cell[0] * cell, cell, cell);
  }
  $("low").textContent = shown.low.toFixed(2);
  $("high").textContent = shown.high.toFixed(2);
  drawTicks(shown, strip, side);
  drawCell(shown, sheet);
}

function drawTicks(shown, strip, side) {
  const ticks = [];
  if (data.kind && state.order === data.kind) {
    let start = 0;
    for (let at = 1; at <= count; at++) {
      if (at < count && data.groupOf[shown.order[at]] === data.groupOf[shown.order[start]]) continue;
      ticks.push([(start + at) / 2, groupName(data.groupOf[shown.order[start]])]);
      start = at;
    }
  } else if (count <= 60) {
    shown.order.forEach((video, at) => ticks.push([at + 0.5, data.videos[video]]));
  }
  let last = -Infinity;
  const kept = ticks.map(([at, name]) => [strip + (at * side) / count, name]).filter(([top]) => {
    if (top - last < 13) return false;
    last = top;
    return true;
  });
  $("ticks").replaceChildren(...kept.map(([top, name]) => {
    const tick = element("span", { textContent: name, title: name });
    tick.style.top = `${top}px`;
    return tick;
  }));
}

function drawCell(shown, sheet) {
  if (!state.cell) {
    $("cell").replaceChildren();
    return;
  }
  const [row, column] = state.cell;
  const videos = [row, column].map((place) => cellVideos(shown, place, sheet.side));
  const alone = row === column && videos[0].length === 1;
  const step = (shown.high - shown.low) / 255, digits = Math.min(4, Math.max(2, Math.ceil(-Math.log10(Math.max(step, 1e-9)))));
  const value = alone ? "1" : (shown.low + step * sheet.values[row * sheet.side + column]).toFixed(digits);
  $("cell").replaceChildren(
    element("b", { textContent: value }), alone ? " a video with itself" : videos.some((some) => some.length > 1) ? " on average" : "",
    element("div", { className: "pair" }, ...videos.map((some) => element("div", {},
      some.length === 1 ? picture(some[0]) : null,
      element("div", { textContent: some.length === 1 ? data.videos[some[0]] : `${some.length} videos, ${data.videos[some[0]]} to ${data.videos[some.at(-1)]}` }),
      some.length === 1 ? groupLine(some[0]) : null))));
}

function cellVideos(shown, place, side) {
  return shown.order.slice(Math.floor((place * count) / side), Math.floor(((place + 1) * count) / side));
}

async function pointAt(row, column) {
  const { side } = await readLevels(matrix().png);
  const inside = (place) => Math.min(side - 1, Math.max(0, place));
  state.cell = [inside(row), inside(column)];
  drawMatrix();
}

async function cellUnder(event) {
  const shown = matrix(), { side } = await readLevels(shown.png);
  const box = canvas.getBoundingClientRect(), strip = data.kind ? STRIP : 0;
  const place = (pixels) => Math.floor(((pixels - strip) / (box.width - strip)) * side);
  return [place(event.clientY - box.top), place(event.clientX - box.left)];
}

async function selectRow() {
  const { side } = await readLevels(matrix().png);
  select(cellVideos(matrix(), state.cell[0], side)[0]);
}

canvas.addEventListener("pointermove", async (event) => pointAt(...(await cellUnder(event))));
canvas.addEventListener("pointerleave", () => { state.cell = null; drawMatrix(); });
canvas.addEventListener("click", async (event) => { await pointAt(...(await cellUnder(event))); selectRow(); });
canvas.addEventListener("keydown", (event) => {
  const way = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (way) {
    event.preventDefault();
    const [row, column] = state.cell ?? [0, 0];
    pointAt(row + way[0], column + way[1]);
  } else if (event.key === "Enter" && state.cell) selectRow();
});

// Everything around --------------------------------------------------------------------------------------------------

function drawCaption() {
  const [first, second] = layer().explained;
  $("caption").textContent = state.map === "pca"
    ? `The first two principal components hold ${percent(first)} and ${percent(second)} of the variance.`
    : "t-SNE keeps neighbours together; how far groups lie apart says little.";
}

function drawLegend() {
  const numbers = new Map();
  for (const group of data.groupOf) numbers.set(group, (numbers.get(group) ?? 0) + 1);
  const shown = data.kind ? [...numbers.keys()].sort((a, b) => (a < 0) - (b < 0) || a - b) : [];
  $("legend").replaceChildren(...shown.map((group) => {
    const button = element("button", { type: "button", ariaPressed: "false" }, dot(group), `${groupName(group)} ${numbers.get(group)}`);
    button.addEventListener("click", () => {
      state.group = state.group === group ? null : group;
      for (const other of $("legend").children) other.ariaPressed = String(other === button && state.group !== null);
      drawSelection();
    });
    return button;
  }));
}

function drawLayers() {
  if (!data.layers.some((one) => one.agreement !== null)) return;
  $("layers-card").hidden = false;
  $("agreement-head").textContent = `the most similar video has the same ${data.kind}`;
  $("chance").textContent = `A video picked at random has the same ${data.kind} in ${percent(data.layers[0].chance)} of the cases.`;
  $("layers").replaceChildren(...data.layers.map((one) => {
    const bar = element("i");
    bar.style.width = `${100 * one.agreement}%`;
    return element("tr", {}, element("td", { textContent: one.name }), element("td", { textContent: one.numValues.toLocaleString("en") }),
      element("td", {}, percent(one.agreement), element("span", { className: "bar" }, bar)));
  }));
}

function chooseLayer(number) {
  state.layer = number;
  const orders = Object.keys(layer().matrices);
  if (!orders.includes(state.order)) state.order = orders[0];
  const tsne = document.querySelector("#maps input[value=tsne]");
  tsne.disabled = !layer().tsne;
  if (!layer().tsne) chooseMap("pca");
  [...$("layers").children].forEach((row, at) => row.classList.toggle("shown", at === number));
  refresh();
}

function chooseMap(name) {
  state.map = name;
  document.querySelector(`#maps input[value=${name}]`).checked = true;
}

function refresh() {
  showTip(null);
  drawMap(true);
  drawCaption();
  drawPanel();
  drawMatrix();
}

function find(text) {
  const wanted = text.trim().toLowerCase();
  const fits = (video) => data.videos[video].toLowerCase().includes(wanted)
    || (data.groupOf[video] >= 0 && groupName(data.groupOf[video]).toLowerCase().includes(wanted));
  state.found = wanted ? new Set([...data.videos.keys()].filter(fits)) : null;
  $("found").textContent = state.found ? `${state.found.size} of ${count}` : "";
  drawSelection();
}

function selectNextFound() {
  const found = state.found ? [...state.found] : [];
  if (found.length) select(found.find((video) => state.selected !== null && video > state.selected) ?? found[0]);
}

$("title").textContent = data.file;
$("summary").textContent = `${count === data.numInFile ? "" : `${count.toLocaleString("en")} of `}${data.numInFile.toLocaleString("en")} videos, `
  + `${data.layers.length} layer${data.layers.length === 1 ? "" : "s"}`;
$("notes").append(...data.notes.map((note) => element("li", { textContent: note })));
$("layer").append(...data.layers.map((one, number) => element("option", { value: number, textContent: one.name })));
$("order").append(...Object.keys(data.layers[0].matrices).map((name) => element("option", { value: name, textContent: name })));
$("ramp").style.background = `linear-gradient(to right, ${RAMP.map((hex) => `#${hex}`).join(", ")})`;
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("layer").addEventListener("change", (event) => chooseLayer(Number(event.target.value)));
$("order").addEventListener("change", (event) => { state.order = event.target.value; drawMatrix(); });
$("maps").addEventListener("change", (event) => { chooseMap(event.target.value); fit(); refresh(); });
$("search").addEventListener("input", (event) => find(event.target.value));
$("search").addEventListener("keydown", (event) => { if (event.key === "Enter") selectNextFound(); });
new ResizeObserver(() => drawMatrix()).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawMatrix());
drawLegend();
drawLayers();
chooseLayer(0);
