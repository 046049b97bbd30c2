"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const [H, W] = data.size, S = data.steps.length, TOP = data.top;
  const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
  // Browsers before 2025 lack fromBase64, which takes a fortieth of the time of the loop.
  const decode = (text) => {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
    const bytes = atob(text), raw = new Uint8Array(bytes.length);
    for (let i = 0; i < bytes.length; i++) raw[i] = bytes.charCodeAt(i);
    return raw;
  };
  const array = ({ type, bytes }) => new TYPES[type](decode(bytes).buffer);
  const maps = {};
  for (const name in data.arrays) maps[name] = array(data.arrays[name]);
  const pictures = {};
  const state = { step: S - 1, y: H >> 1, x: W >> 1, held: false, layer: "mean", overlay: "none" };

  const load = (name, url) => new Promise((done) => {
    const image = new Image();
    image.onload = () => { pictures[name] = image; done(); };
    image.src = url;
  });

  // The patches of a pixel at a step, as the Python API names them; null where the step was left out.
  function attribution(y, x, step) {
    const row = data.steps[step].row;
    if (row === null) return null;
    const pixel = (row * H + y) * W + x, patches = [];
    for (let i = 0; i < TOP; i++) {
      const weight = maps.weight[pixel * TOP + i], entry = maps.image[pixel * TOP + i];
      if (entry === data.images.id.length) break;
      const place = maps.place[pixel * TOP + i];
      patches.push({
        entry, image: data.images.id[entry], label: data.images.label[entry],
        y: Math.floor(place / W), x: place % W, weight: weight / 65535,
      });
    }
    return {
      patches, rest: maps.rest[pixel], entropy: maps.entropy[pixel], captured: maps.captured[pixel],
      method: data.steps[step].method,
    };
  }
  const at = (name, step, y, x) => maps[name][(step * H + y) * W + x];
  const short = (v, digits = 3) => v === null || Number.isNaN(v) ? "not known" : Number(v.toPrecision(digits)).toLocaleString("en");
  const labelled = (n) => n < 0 ? "" : data.label_names[n] !== undefined ? data.label_names[n] : `label ${n}`;

  // Where a picture is: sprite, and origin in it.
  const strip = (layer, step) => layer === "sample" ? ["sample", 0, 0] : ["strip", step * W, layer === "x" ? 0 : H];
  const source = (entry) => entry < data.images.shown
    ? ["sources", (entry % data.images.columns) * W, Math.floor(entry / data.images.columns) * H] : null;

  function fit(canvas, width, height) {
    canvas.width = width; canvas.height = height;
    const ctx = canvas.getContext("2d");
    ctx.imageSmoothingEnabled = false;
    return ctx;
  }
  const shifts = (wrap) => wrap ? [-1, 0, 1] : [0];
  // The sprite of training images comes after the first drawing.
  function paint(ctx, name, ...place) {
    if (pictures[name]) ctx.drawImage(pictures[name], ...place);
  }

  // Draw the k x k window around a pixel of a picture; padding is mid grey.
  function drawWindow(canvas, [name, left, top], y, x, k, wrap) {
    const whole = k === 0, height = whole ? H : k, width = whole ? W : k, d = k >> 1;
    const ctx = fit(canvas, width, height);
    ctx.fillStyle = "rgb(128,128,128)";
    ctx.fillRect(0, 0, width, height);
    const oy = whole ? 0 : d - y, ox = whole ? 0 : d - x;
    for (const sy of shifts(wrap && !whole)) for (const sx of shifts(wrap && !whole)) {
      paint(ctx, name, left, top, W, H, ox + sx * W, oy + sy * H, W, H);
    }
  }
  function box(ctx, s, y, x, k, wrap, colour) {
    const d = k >> 1;
    ctx.save();
    ctx.beginPath(); ctx.rect(0, 0, W * s, H * s); ctx.clip();
    for (const [width, style] of [[3, "#000"], [1.5, colour]]) {
      ctx.lineWidth = width; ctx.strokeStyle = style;
      if (k) for (const sy of shifts(wrap)) for (const sx of shifts(wrap)) {
        ctx.strokeRect((x - d + sx * W) * s, (y - d + sy * H) * s, k * s, k * s);
      }
      ctx.strokeRect(x * s + 1, y * s + 1, s - 2, s - 2);
    }
    ctx.restore();
  }
  const hue = (n) => `hsl(${(n * 137.508) % 360} 85% 50%)`;
  const scale = (v) => `hsl(${260 - 200 * v} 80% ${22 + 45 * v}%)`;

  // Offsets of the heaviest patch: pixels with equal keys that touch came from one piece of an image.
  function key(y, x, step) {
    const row = data.steps[step].row, pixel = (row * H + y) * W + x;
    const place = maps.place[pixel * TOP];
    let dy = Math.floor(place / W) - y, dx = place % W - x;
    if (data.wrapped) { dy = (dy + H) % H; dx = (dx + W) % W; }
    return `${maps.image[pixel * TOP]},${dy},${dx}`;
  }
  function drawOverlay(ctx, s) {
    const step = state.step, row = data.steps[step].row, kind = state.overlay;
    const perPatch = ["image", "segment", "heaviest"].includes(kind);
    if (kind === "none") return "";
    if (perPatch && row === null) return "The patches of this step were left out: choose the last step.";
    let low = Infinity, high = -Infinity;
    const value = (y, x) => {
      if (kind === "heaviest") return maps.weight[((row * H + y) * W + x) * TOP] / 65535;
      if (kind === "difference") return maps.difference[y * W + x];
      const v = at(kind, step, y, x);
      return kind === "ess" ? Math.log10(Math.max(1, v)) : v;
    };
    if (kind === "image" || kind === "segment") {
      const counts = new Map(), names = new Set();
      for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
        const name = kind === "image" ? maps.image[((row * H + y) * W + x) * TOP] : key(y, x, step);
        names.add(name);
        if (!counts.has(name)) counts.set(name, counts.size);
        ctx.fillStyle = hue(kind === "image" ? data.images.id[name] : counts.get(name));
        ctx.globalAlpha = 0.55;
        ctx.fillRect(x * s, y * s, s, s);
      }
      ctx.globalAlpha = 1; ctx.strokeStyle = "#000"; ctx.lineWidth = 1; ctx.beginPath();
      for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
        const own = key(y, x, step);
        if (x + 1 < W && own !== key(y, x + 1, step)) { ctx.moveTo((x + 1) * s, y * s); ctx.lineTo((x + 1) * s, (y + 1) * s); }
        if (y + 1 < H && own !== key(y + 1, x, step)) { ctx.moveTo(x * s, (y + 1) * s); ctx.lineTo((x + 1) * s, (y + 1) * s); }
      }
      ctx.stroke();
      const images = new Set();
      for (let p = 0; p < H * W; p++) images.add(maps.image[(row * H * W + p) * TOP]);
      return kind === "image"
        ? `Each pixel has the colour of the training image of its heaviest patch: ${images.size} training images. Lines separate the segments.`
        : "A segment is a set of connected pixels whose heaviest patches lie at one offset in one training image.";
    }
    for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
      const v = value(y, x);
      if (!Number.isNaN(v)) { low = Math.min(low, v); high = Math.max(high, v); }
    }
    if (low > high) return "Not known for this denoiser.";
    ctx.globalAlpha = 0.8;
    for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
      const v = value(y, x);
      ctx.fillStyle = Number.isNaN(v) ? "#888" : scale(high > low ? (v - low) / (high - low) : 0);
      ctx.fillRect(x * s, y * s, s, s);
    }
    ctx.globalAlpha = 1;
    const shown = (v) => short(kind === "ess" ? 10 ** v : v);
    return `From ${shown(low)} (dark violet) to ${shown(high)} (yellow)${kind === "ess" ? ", on a log scale" : ""}.`;
  }

  const scaleOf = () => Math.max(2, Math.round(640 / Math.max(H, W)));
  // The picture without the marked pixel is kept: only its layer, its step and its overlay change it.
  const base = document.createElement("canvas");
  let drawn = "", said = "";
  function drawBase() {
    const s = scaleOf(), wanted = `${state.layer} ${state.step} ${state.overlay}`;
    if (wanted !== drawn) {
      const ctx = fit(base, W * s, H * s), [name, left, top] = strip(state.layer, state.step);
      ctx.drawImage(pictures[name], left, top, W, H, 0, 0, W * s, H * s);
      said = drawOverlay(ctx, s);
      drawn = wanted;
    }
    return said;
  }
  function drawImage(canvas, picture) {
    const s = scaleOf(), ctx = fit(canvas, W * s, H * s);
    ctx.drawImage(picture, 0, 0, W * s, H * s);
    box(ctx, s, state.y, state.x, data.steps[state.step].k, data.circular, "#fff");
  }
  function fill(list, rows) {
    list.replaceChildren(...rows.map(([name, value]) => {
      const div = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name; dd.textContent = value;
      div.append(dt, dd);
      return div;
    }));
  }
  function cell(row, kind) {
    const td = document.createElement("td");
    td.className = kind;
    row.append(td);
    return td;
  }
  function patchRow(patch, k) {
    const row = document.createElement("tr");
    row.dataset.weight = patch.weight; row.dataset.image = patch.image;
    row.dataset.y = patch.y; row.dataset.x = patch.x;
    const weight = cell(row, "weight"), bar = document.createElement("div");
    weight.textContent = patch.weight < 0.0001 ? "< 0.0001" : patch.weight.toFixed(4);
    bar.className = "bar"; bar.style.width = `${100 * patch.weight}%`;
    weight.append(bar);
    const crop = cell(row, "patch"), image = cell(row, "image"), place = source(patch.entry);
    if (place === null) {
      crop.textContent = image.textContent = "not on this page"; crop.classList.add("none"); image.classList.add("none");
    } else {
      const small = document.createElement("canvas"), large = document.createElement("canvas");
      small.setAttribute("role", "img"); small.setAttribute("aria-label", "The patch");
      large.setAttribute("role", "img"); large.setAttribute("aria-label", `Training image ${patch.image} with the patch`);
      drawWindow(small, place, patch.y, patch.x, k, data.wrapped);
      const s = Math.max(2, Math.round(176 / Math.max(H, W))), ctx = fit(large, W * s, H * s);
      paint(ctx, ...place, W, H, 0, 0, W * s, H * s);
      box(ctx, s, patch.y, patch.x, k, data.wrapped, "#ff3b30");
      crop.append(small); image.append(large);
    }
    const name = data.images.name[patch.entry], label = labelled(patch.label);
    cell(row, "where").textContent = [`image ${patch.image}`, name, label, `row ${patch.y}, column ${patch.x}`].filter(Boolean).join(", ");
    return row;
  }
  function drawChart() {
    const values = data.steps.map((_, i) => Math.log10(Math.max(1, at("ess", i, state.y, state.x))));
    const known = values.filter((v) => !Number.isNaN(v)), svg = $("chart");
    const most = Math.max(1, ...known), px = (i) => 30 + 360 * (S > 1 ? i / (S - 1) : 0.5), py = (v) => 100 - 85 * v / most;
    const element = (name, attributes, text) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const a in attributes) made.setAttribute(a, attributes[a]);
      if (text) made.textContent = text;
      return made;
    };
    const parts = [];
    for (let v = 0; v <= most; v++) parts.push(
      element("line", { x1: 30, x2: 390, y1: py(v), y2: py(v), stroke: "var(--line)" }),
      element("text", { x: 26, y: py(v) + 3, "text-anchor": "end" }, v < 4 ? String(10 ** v) : `1e${v}`));
    const points = values.map((v, i) => Number.isNaN(v) ? null : `${px(i)},${py(v)}`).filter(Boolean).join(" ");
    parts.push(element("polyline", { points, fill: "none", stroke: "var(--bar)", "stroke-width": 2 }));
    if (!Number.isNaN(values[state.step])) parts.push(element("circle", { cx: px(state.step), cy: py(values[state.step]), r: 4, fill: "var(--mark)" }));
    parts.push(element("text", { x: 30, y: 116 }, `t = ${short(data.steps[0].t)}`), element("text", { x: 390, y: 116, "text-anchor": "end" }, `t = ${short(data.steps[S - 1].t)}`));
    svg.replaceChildren(...parts);
    svg.setAttribute("aria-label", `Effective sample size of pixel row ${state.y}, column ${state.x} by step: ${values.map((v) => short(10 ** v)).join(", ")}`);
  }
  function draw() {
    const { step, y, x } = state, { t, k, method } = data.steps[step];
    const text = `step ${step + 1} of ${S}, t = ${short(t)}${k ? `, k = ${k}` : ""}`;
    $("step").value = step; $("step").setAttribute("aria-valuetext", text); $("at").textContent = text;
    $("legend").textContent = drawBase();
    drawImage($("canvas"), base);
    $("caption").textContent = state.layer === "sample" ? `sample ${data.number}` : state.layer === "x" ? "noisy image before the step" : "posterior mean";
    if (pictures.beside) drawImage($("second"), pictures.beside);
    const found = attribution(y, x, step), ess = at("ess", step, y, x), stderr = at("stderr", step, y, x);
    $("pixel").textContent = `Pixel row ${y}, column ${x}${state.held ? " (held)" : ""}`;
    drawWindow($("window-x"), strip("x", step), y, x, k, data.circular);
    drawWindow($("window-mean"), strip("mean", step), y, x, k, data.circular);
    const rows = [["effective sample size", short(ess)], ["standard error", method === "exact" ? "0 (exact)" : short(stderr)]];
    if (found) rows.push(["entropy, nats", short(found.entropy)], ["weight not named", found.rest.toFixed(4)],
      ["method", found.method], ["captured mass", short(found.captured, 4)]);
    if (step === S - 1) rows.push(["difference to nearest patch", short(maps.difference[y * W + x])]);
    fill($("numbers"), rows);
    $("patches").replaceChildren(...(found ? found.patches.map((patch) => patchRow(patch, k)) : []));
    $("table-caption").textContent = found ? `Heaviest training patches, ${text}` : "The patches of this step were left out";
    const first = found && found.patches[0];
    $("says").textContent = first ? `Row ${y}, column ${x}, ${text}. Heaviest patch: weight ${first.weight.toFixed(3)}, image ${first.image}, row ${first.y}, column ${first.x}. Effective sample size ${short(ess)}.` : `Row ${y}, column ${x}, ${text}. Effective sample size ${short(ess)}.`;
    drawChart();
  }

  const clamp = (v, most) => Math.min(most, Math.max(0, v));
  function set(changes) {
    Object.assign(state, changes);
    state.step = clamp(state.step, S - 1); state.y = clamp(state.y, H - 1); state.x = clamp(state.x, W - 1);
    draw();
  }
  function pixelOf(event) {
    const area = event.target.getBoundingClientRect();
    return { y: Math.floor((event.clientY - area.top) / area.height * H), x: Math.floor((event.clientX - area.left) / area.width * W) };
  }
  let timer = null;
  function stop() { clearInterval(timer); timer = null; $("play").textContent = "Play"; }
  function listen() {
    for (const id of ["canvas", "second"]) {
      $(id).addEventListener("pointermove", (event) => {
        const pixel = pixelOf(event), moved = pixel.y !== state.y || pixel.x !== state.x;
        if (event.pointerType === "mouse" && !state.held && moved) set(pixel);
      });
      $(id).addEventListener("click", (event) => {
        const pixel = pixelOf(event), same = state.held && pixel.y === state.y && pixel.x === state.x;
        set({ ...pixel, held: !same });
      });
    }
    $("canvas").addEventListener("keydown", (event) => {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      if (event.key in moves) set({ y: state.y + moves[event.key][0], x: state.x + moves[event.key][1], held: true });
      else if (event.key === "PageUp") set({ step: state.step - 1 });
      else if (event.key === "PageDown") set({ step: state.step + 1 });
      else if (event.key === "Escape") set({ held: false });
      else return;
      event.preventDefault();
    });
    $("step").addEventListener("input", (event) => { stop(); set({ step: Number(event.target.value) }); });
    $("layer").addEventListener("change", (event) => set({ layer: event.target.value }));
    $("overlay").addEventListener("change", (event) => set({ overlay: event.target.value }));
    $("play").addEventListener("click", () => {
      if (timer !== null) { stop(); return; }
      $("play").textContent = "Stop";
      if (state.step === S - 1) set({ step: 0 });
      timer = setInterval(() => { if (state.step === S - 1) stop(); else set({ step: state.step + 1 }); }, 400);
    });
    $("controls").addEventListener("submit", (event) => event.preventDefault());
    $("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
  }
  function theme(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    $("theme").textContent = dark ? "Light" : "Dark";
    $("theme").setAttribute("aria-pressed", String(dark));
  }
  function once() {
    $("step").max = S - 1;
    $("step").disabled = $("play").disabled = S === 1;
    $("lead").textContent = data.lead;
    fill($("summary"), data.summary);
    $("nearest").replaceChildren(...data.nearest.map(({ image, distance, name }, i) => {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas"), caption = document.createElement("figcaption");
      fit(canvas, W, H).drawImage(pictures.nearest, i * W, 0, W, H, 0, 0, W, H);
      canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", `Training image ${image}`);
      caption.textContent = [`image ${image}`, name, `distance ${distance.toFixed(3)}`].filter(Boolean).join(", ");
      figure.append(canvas, caption);
      return figure;
    }));
    if (pictures.beside) { $("beside").hidden = false; $("beside-caption").textContent = data.beside_name; }
  }
  theme(matchMedia("(prefers-color-scheme: dark)").matches);
  const ready = Promise.all(Object.entries(data.pictures).map(([name, url]) => load(name, url))).then(() => {
    once(); listen(); draw();
    document.documentElement.dataset.ready = "true";
  });
  addEventListener("DOMContentLoaded", async () => {
    await ready;
    if (data.images.shown) {
      await $("sources").decode();
      pictures.sources = $("sources");
      draw();
    }
    document.documentElement.dataset.complete = "true";
  });
  window.patches = { attribution, state, set };
})();
