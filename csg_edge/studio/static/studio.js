// The studio's page: state, drawing, and one question to the server at a time, so that the newest stroke wins.
import {Painter} from "./painter.js";

const $ = (id) => document.getElementById(id);
const token = new URLSearchParams(location.search).get("token") ?? "";
const KEPT = "csg-edge-studio"; // in this browser: what survives a server or a page that ends
const UNSAID = 255, UNSAID_GREY = 60, IDLE = 350, SEEDS = 8, AGAIN = 1500;

let about, painter, context, labels, image, second;
const state = {seed: 0n, steps: 1, engine: "auto", secondEngine: "", tool: "brush", value: 3, size: 9, outlines: false,
               vary: {}, fibre: {}, look: ""};

// ---- the server ----

class Refused extends Error {}

async function ask(path, body) {
  let answer;
  try {
    answer = await fetch(path, {method: body === undefined ? "GET" : "POST", body, headers: {"X-Studio-Token": token}});
  } catch {
    throw new Error("the studio does not answer. Start csg-edge studio again; what you painted is kept in this browser");
  }
  if (answer.ok) return answer;
  const text = await answer.json().then((found) => found.error, () => `error ${answer.status}`);
  throw new (answer.status === 403 ? Refused : Error)(text);
}

// {text, arrays}: what an answer holds, arrays of one picture each.
async function pictures(answer) {
  const data = await answer.arrayBuffer();
  const length = new DataView(data).getUint32(0, true);
  const text = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  const size = about.width * about.height, arrays = [];
  for (let start = 4 + length; start < data.byteLength; start += size) arrays.push(new Uint8Array(data, start, size));
  return {text, arrays};
}

function wish(changes = {}) {
  // A seed has up to 64 bits, more than a number here; so it is put in as text.
  const {seed, ...rest} = {seed: state.seed, steps: state.steps, engine: state.engine, vary: varySpec(), fibre: fibreSpec(), ...changes};
  const text = new TextEncoder().encode(JSON.stringify(rest).replace("{", `{"seed":${seed},`));
  const body = new Uint8Array(4 + text.length + 2 * painter.mask.length);
  new DataView(body.buffer).setUint32(0, text.length, true);
  body.set(text, 4);
  body.set(painter.mask, 4 + text.length);
  body.set(context, 4 + text.length + painter.mask.length);
  return body;
}

// ---- the loop: one image under way; what changes meanwhile is asked for next, what was between is left out ----

let busy = false, wanted = false, changedAt = 0, idleTimer = 0, stripRun = 0;

function changed(event) {
  changedAt = event?.timeStamp || performance.now();
  wanted = true;
  stripRun++;
  clearTimeout(idleTimer);
  draw();
  if (!busy) loop();
}

async function loop() {
  busy = true;
  while (wanted) {
    wanted = false;
    const asked = changedAt;
    try {
      const first = await pictures(await ask("api/image", wish()));
      [image, labels] = first.arrays;
      second = null;
      if (state.secondEngine && !wanted) {
        const other = await pictures(await ask("api/image", wish({engine: state.secondEngine})));
        second = other.arrays[0];
        $("second-shown").textContent = `${other.text.engine}, ${other.text.milliseconds.toFixed(1)} ms, ${difference()}`;
      }
      say("");
      drawImages();
      $("engine-shown").textContent = first.text.engine;
      await new Promise(requestAnimationFrame);
      const took = performance.now() - asked;
      $("status").textContent = `engine ${first.text.milliseconds.toFixed(1)} ms, stroke to screen ${took.toFixed(0)} ms`;
      document.documentElement.dataset.latency = took.toFixed(2);
      document.documentElement.dataset.frame = Number(document.documentElement.dataset.frame ?? 0) + 1;
    } catch (error) {
      say(error.message);
      if (!(error instanceof Refused) && /does not answer/.test(error.message)) waitForServer();
    }
  }
  busy = false;
  idleTimer = setTimeout(() => { keep(); strip(); }, IDLE);
}

let waiting = false;

async function waitForServer() {
  if (waiting) return;
  waiting = true;
  for (;;) {
    await new Promise((done) => setTimeout(done, AGAIN));
    try {
      await ask("api/about");
      waiting = false;
      changed();
      return;
    } catch (error) {
      if (error instanceof Refused) {
        say("the studio was started again. Open the address that it printed; what you painted is kept in this browser");
        waiting = false;
        return;
      }
    }
  }
}

async function strip() {
  const run = ++stripRun;
  for (let k = 0; k < SEEDS; k++) {
    const seed = state.seed + BigInt(k + 1);
    if (seed > BigInt(about.highest_seed) || run !== stripRun || wanted) return;
    try {
      const {arrays} = await pictures(await ask("api/image", wish({seed})));
      if (run !== stripRun) return;
      const button = $("strip").children[k];
      toCanvas(button.firstChild, arrays[0]);
      button.lastChild.textContent = seed;
      button.onclick = () => setSeed(seed);
    } catch {
      return;
    }
  }
  document.documentElement.dataset.strip = Number(document.documentElement.dataset.strip ?? 0) + 1;
}

function difference() {
  let squares = 0;
  for (let i = 0; i < image.length; i++) squares += (image[i] - second[i]) ** 2;
  return squares ? `PSNR ${(10 * Math.log10(255 ** 2 * image.length / squares)).toFixed(1)} dB` : "the same bytes";
}

// ---- drawing ----

// outlined: whether the borders of the labels are drawn over it.
function toCanvas(canvas, grey, outlined = false) {
  canvas.width = about.width;
  canvas.height = about.height;
  const data = new ImageData(about.width, about.height);
  for (let i = 0; i < grey.length; i++) {
    data.data[4 * i] = data.data[4 * i + 1] = data.data[4 * i + 2] = grey[i];
    data.data[4 * i + 3] = 255;
  }
  if (outlined) outline(data.data);
  canvas.getContext("2d").putImageData(data, 0, 0);
}

function outline(pixels) {
  const {width, height} = about;
  for (let y = 0; y < height - 1; y++) {
    for (let x = 0; x < width - 1; x++) {
      const i = y * width + x, here = labels[i];
      const other = labels[i + 1] !== here ? labels[i + 1] : labels[i + width];
      if (other !== here) pixels.set(colourOf(here || other), 4 * i);
    }
  }
}

const colourOf = (value) => value === UNSAID ? [UNSAID_GREY, UNSAID_GREY, UNSAID_GREY] : about.classes[value % about.classes.length].colour;

function draw() {
  const canvas = $("painted"), pen = canvas.getContext("2d");
  if (canvas.width !== about.width) [canvas.width, canvas.height] = [about.width, about.height];
  const data = new ImageData(about.width, about.height);
  for (let i = 0; i < painter.mask.length; i++) {
    const colour = colourOf(painter.mask[i]);
    data.data.set(colour, 4 * i);
    data.data[4 * i + 3] = 255;
  }
  pen.putImageData(data, 0, 0);
  pen.lineWidth = 1.5;
  for (const {x, y, degrees} of Object.values(state.fibre)) arrow(pen, x, y, degrees);
  if (drag?.tool === "ellipse") {
    pen.strokeStyle = "#fff";
    pen.beginPath();
    pen.ellipse((drag.start.x + drag.last.x) / 2, (drag.start.y + drag.last.y) / 2,
                Math.abs(drag.start.x - drag.last.x) / 2, Math.abs(drag.start.y - drag.last.y) / 2, 0, 0, 7);
    pen.stroke();
  }
  if (drag?.tool === "fibre") arrow(pen, drag.start.x, drag.start.y, angle(drag.start, drag.last));
  if (document.activeElement === canvas && cursor.shown) {
    pen.strokeStyle = "#fff";
    pen.strokeRect(cursor.x - 3, cursor.y - 3, 6, 6);
  }
}

function arrow(pen, x, y, degrees) {
  const [dx, dy] = [22 * Math.cos(degrees * Math.PI / 180), -22 * Math.sin(degrees * Math.PI / 180)];
  for (const [colour, width] of [["#000", 4], ["#fff", 1.5]]) {
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.beginPath();
    pen.moveTo(x - dx, y - dy);
    pen.lineTo(x + dx, y + dy);
    pen.stroke();
  }
}

function drawImages() {
  toCanvas($("image"), image, state.outlines);
  if (second) toCanvas($("second"), second, state.outlines);
}

// ---- painting ----

let drag = null;
const cursor = {x: 128, y: 128, shown: false};

function place(event) {
  const box = event.currentTarget.getBoundingClientRect();
  return {x: (event.clientX - box.left) / box.width * about.width, y: (event.clientY - box.top) / box.height * about.height};
}

const angle = (from, to) => {
  const degrees = Math.atan2(from.y - to.y, to.x - from.x) * 180 / Math.PI;
  return Math.round(degrees > 90 ? degrees - 180 : degrees <= -90 ? degrees + 180 : degrees);
};

function press(event) {
  if (event.button) return;
  event.preventDefault();
  event.currentTarget.setPointerCapture(event.pointerId);
  const point = place(event);
  drag = {tool: state.tool, start: point, last: point, border: null};
  if (drag.tool !== "fibre") painter.begin();
  if (drag.tool === "edge") drag.border = painter.border(point);
  move(event);
}

function move(event) {
  if (!drag) return;
  const point = place(event);
  if (drag.tool === "brush") painter.line(drag.last, point, state.size / 2, state.value);
  if (drag.tool === "edge" && drag.border) painter.moveBorder(drag.border, drag.last, point);
  drag.last = point;
  if (drag.tool === "brush" || drag.tool === "edge") changed(event);
  else draw();
}

function release(event) {
  if (!drag) return;
  const {tool, start, last} = drag;
  drag = null;
  if (tool === "ellipse") painter.ellipse(start, last, state.value);
  if (tool === "fibre") setFibre(painter.at(start.x, start.y), start, Math.hypot(last.x - start.x, last.y - start.y) < 4 ? 0 : angle(start, last));
  if (tool === "ellipse" || tool === "fibre") changed(event);
  buttons();
}

function setFibre(value, at, degrees) {
  if (value === UNSAID) return;
  state.fibre[about.classes[value].name] = {...at, degrees};
  listFibres();
}

function listFibres() {
  $("fibres").replaceChildren(...Object.entries(state.fibre).map(([name, {degrees}]) => {
    const button = document.createElement("button");
    button.textContent = `${name} ${degrees} deg  ×`;
    button.setAttribute("aria-label", `${name} ${degrees} degrees: take away`);
    button.onclick = () => { delete state.fibre[name]; listFibres(); changed(); };
    return button;
  }));
}

const fibreSpec = () => about.fibre ? Object.entries(state.fibre).map(([name, {degrees}]) => `${name}=${degrees}deg`).join(",") : "";

// ---- variations ----

const varySpec = () => Object.entries(state.vary).filter(([, given]) => given.on).map(([name, {amount, target}]) => {
  const kind = about.variations.find((one) => one.name === name);
  const number = kind.takes_amount && amount !== null ? `${amount < 0 ? "" : "+"}${amount}${kind.unit}` : "";
  return [name, [target, number].filter(Boolean).join("=")].filter(Boolean).join(":");
}).join(",");

function listVariations() {
  const rows = about.variations.map((kind) => {
    const row = document.createElement("label");
    row.className = "variation";
    row.title = kind.about;
    const given = state.vary[kind.name] ??= {on: false, amount: kind.takes_amount ? 0 : null, target: ""};
    const name = document.createElement("span");
    name.textContent = kind.name;
    row.append(name);
    if (kind.target !== "none") {
      const choice = document.createElement("select");
      choice.setAttribute("aria-label", `${kind.name}: class`);
      const names = kind.name === "shift" ? ["x", "depth"] : about.classes.slice(1).map((one) => one.name);
      const first = kind.target === "optional" && kind.name !== "shift" ? ["all"] : kind.takes_amount && kind.name === "shift" ? [] : ["off"];
      choice.append(...[...first, ...names].map((text) => new Option(text, first.includes(text) ? "" : text)));
      choice.value = given.target || (first.length ? "" : names[0]);
      given.target = choice.value;
      choice.onchange = () => { given.target = choice.value; set(); };
      row.append(choice);
    }
    const slider = document.createElement("input"), shown = document.createElement("output");
    if (kind.takes_amount) {
      slider.type = "range";
      slider.setAttribute("aria-label", `${kind.name}: amount`);
      const most = kind.unit === "%" ? Math.min(kind.highest, 90) : kind.highest;
      slider.max = most;
      slider.min = kind.signed ? -most : 0;
      slider.step = kind.unit === "" ? 0.05 : 1;
      slider.value = given.amount;
      slider.oninput = () => { given.amount = Number(slider.value); set(); };
      slider.ondblclick = () => { slider.value = given.amount = 0; set(); };
      row.append(slider);
    } else {
      row.append(document.createElement("span"));
    }
    row.append(shown);
    const show = () => { shown.textContent = kind.takes_amount ? `${given.amount}${kind.unit === "deg" ? "°" : kind.unit}` : ""; };
    const set = () => {
      given.on = (kind.target !== "needed" || given.target !== "") && (!kind.takes_amount || given.amount !== 0);
      show();
      changed();
    };
    show();
    return row;
  });
  $("variations").replaceChildren(...rows);
}

// ---- looks ----

function addLook(name, fetchIt, grey = null) {
  const button = document.createElement("button"), canvas = document.createElement("canvas");
  button.setAttribute("role", "option");
  button.setAttribute("aria-label", `look ${name}`);
  button.title = name;
  button.append(canvas);
  const ready = async () => {
    if (!grey) {
      grey = await fetchIt();
      toCanvas(canvas, grey);
    }
    return grey;
  };
  if (grey) toCanvas(canvas, grey);
  button.onclick = async () => {
    try {
      context = (await ready()).slice();
      chooseLook(name);
      changed();
    } catch (error) {
      say(error.message);
    }
  };
  button.ready = ready;
  $("gallery").append(button);
  seen.observe(button);
  return button;
}

const seen = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) {
      seen.unobserve(target);
      target.ready().catch(() => {});
    }
  }
});

function chooseLook(name) {
  state.look = name;
  for (const button of $("gallery").children) button.setAttribute("aria-selected", button.title === name);
}

// ---- files ----

async function load(kind, file) {
  if (!file) return;
  try {
    if (file.size > about.largest_upload) {
      const [has, most] = [file.size, about.largest_upload].map((bytes) => `${(bytes / 1e6).toFixed(0)} MB`);
      throw new Error(`${file.name}: ${has}; give at most ${most}`);
    }
    const answer = await ask(`api/read?${new URLSearchParams({kind, name: file.name})}`, await file.arrayBuffer());
    const [found] = (await pictures(answer)).arrays;
    if (kind === "mask") {
      painter.replace(found);
    } else {
      context = found.slice();
      addLook(file.name, null, context);
      chooseLook(file.name);
    }
    changed();
    buttons();
  } catch (error) {
    say(error.message);
  }
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function save(into) {
  try {
    if (into) say(`saved into ${(await (await ask("api/save?into=folder", wish())).json()).folder}`, true);
    else download("csg-edge-studio.zip", await (await ask("api/save", wish())).blob());
  } catch (error) {
    say(error.message);
  }
}

async function copy(what) {
  try {
    const text = (await (await ask("api/commands", wish())).json())[what];
    await navigator.clipboard.writeText(text);
    say(`copied; it reads painted.png and context.png of a saved zip: ${text.split("\n")[0]}`, true);
  } catch (error) {
    say(error.message);
  }
}

// ---- keeping ----

const toText = (bytes) => { let text = ""; for (const byte of bytes) text += String.fromCharCode(byte); return btoa(text); };
const toBytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

function keep() {
  try {
    const kept = {...state, seed: String(state.seed), mask: toText(painter.mask), context: toText(context), bundle: about.bundle};
    for (const place of [sessionStorage, localStorage]) place.setItem(KEPT, JSON.stringify(kept));
  } catch { /* the browser keeps nothing for us; the page works without */ }
}

// What this tab had, else what the last one that was used had.
function restore() {
  try {
    const {mask, context: look, bundle, seed, ...rest} = JSON.parse(sessionStorage.getItem(KEPT) ?? localStorage.getItem(KEPT));
    const [bytes, grey] = [toBytes(mask), toBytes(look)];
    if (bundle !== about.bundle || bytes.length !== painter.mask.length || grey.length !== bytes.length) return false;
    painter.mask.set(bytes);
    context = grey;
    Object.assign(state, rest, {seed: BigInt(seed)});
    return true;
  } catch {
    return false;
  }
}

// ---- the page ----

function say(text, good = false) {
  $("message").textContent = text;
  $("message").hidden = !text;
  $("message").setAttribute("role", good ? "status" : "alert");
}

function buttons() {
  $("undo").disabled = !painter.past.length;
  $("redo").disabled = !painter.future.length;
  for (const button of $("tools").children) button.setAttribute("aria-checked", button.dataset.tool === state.tool);
  for (const [value, button] of [...$("classes").children].entries()) button.setAttribute("aria-checked", value === state.value);
  $("size-shown").textContent = `${state.size} px`;
  $("size").value = state.size;
  $("seed").value = state.seed;
  $("outlines").checked = state.outlines;
  $("second-figure").hidden = !state.secondEngine;
  $("middle").classList.toggle("three", Boolean(state.secondEngine));
}

function setSeed(seed) {
  const most = BigInt(about.highest_seed);
  state.seed = seed < 0n ? 0n : seed > most ? most : seed;
  buttons();
  changed();
}

function step(back) {
  if (back ? painter.undo() : painter.redo()) changed();
  buttons();
}

async function start(name) {
  try {
    const [mask, look] = (await pictures(await ask(`api/scenes/${encodeURIComponent(name)}`))).arrays;
    painter.replace(mask);
    context = look.slice();
    chooseLook(name);
    changed();
    buttons();
  } catch (error) {
    say(error.message);
  }
}

function key(event) {
  if (event.target.matches("input:not([type=range], [type=checkbox]), select") || event.altKey) return;
  const control = event.ctrlKey || event.metaKey, name = event.key.toLowerCase();
  if (control && name === "z") step(!event.shiftKey);
  else if (control && name === "y") step(false);
  else if (control) return;
  else if (/^\d$/.test(name) && Number(name) < about.classes.length) state.value = Number(name);
  else if (name === "b" || name === "e" || name === "l") state.tool = {b: "brush", e: "ellipse", l: "edge"}[name];
  else if (name === "f" && about.fibre) state.tool = "fibre";
  else if (name === "[") state.size = Math.max(1, state.size - 1);
  else if (name === "]") state.size = Math.min(40, state.size + 1);
  else if (name === "n") setSeed(state.seed + 1n);
  else if (name === "o") { state.outlines = !state.outlines; if (image) drawImages(); }
  else if (name === "s") save(false);
  else if (event.target === $("painted") && (name === " " || name.startsWith("arrow"))) paintByKey(name, event);
  else return;
  event.preventDefault();
  buttons();
}

function paintByKey(name, event) {
  const far = event.shiftKey ? 16 : 4;
  cursor.shown = true;
  cursor.x = Math.min(about.width, Math.max(0, cursor.x + far * ((name === "arrowright") - (name === "arrowleft"))));
  cursor.y = Math.min(about.height, Math.max(0, cursor.y + far * ((name === "arrowdown") - (name === "arrowup"))));
  if (name !== " ") { draw(); return; }
  painter.begin();
  painter.line(cursor, cursor, state.size / 2, state.value);
  changed(event);
}

async function begin() {
  try {
    about = await (await ask("api/about")).json();
  } catch (error) {
    say(error.message);
    return;
  }
  painter = new Painter(about.width, about.height);
  context = new Uint8Array(painter.mask.length);
  $("bundle").textContent = `${about.bundle}, ${about.width} x ${about.height}`;
  $("notice").textContent = about.notice;
  $("classes").append(...about.classes.map(({name, colour}, value) => {
    const button = document.createElement("button"), swatch = document.createElement("span"), hint = document.createElement("kbd");
    swatch.className = "swatch";
    swatch.style.background = `rgb(${colour})`;
    hint.textContent = value < 10 ? value : "";
    button.append(swatch, name, hint);
    button.setAttribute("role", "radio");
    button.onclick = () => { state.value = value; buttons(); };
    return button;
  }));
  for (const button of $("tools").children) {
    button.setAttribute("role", "radio");
    button.onclick = () => { state.tool = button.dataset.tool; buttons(); };
  }
  $("fibre-tool").hidden = $("fibres-part").hidden = !about.fibre;
  $("phantom").hidden = !about.phantom;
  $("save-folder").hidden = !about.results;
  $("scene").append(new Option("a golden mask of the bundle", ""), ...about.scenes.map((name) => new Option(name)));
  $("steps").append(...about.steps.map((steps) => new Option(`${steps} step${steps > 1 ? "s" : ""}`, steps)));
  for (const [list, first] of [[$("engine"), ["first that runs", "auto"]], [$("second-engine"), ["compare with none", ""]]]) {
    list.append(new Option(...first));
    for (const {target, why_not: reason} of about.engines) {
      const option = new Option(target);
      option.disabled = Boolean(reason);
      option.title = reason;
      list.append(option);
    }
  }
  for (let k = 0; k < SEEDS; k++) {
    const button = document.createElement("button");
    button.append(document.createElement("canvas"), document.createElement("span"));
    button.setAttribute("aria-label", `take the seed ${k + 1} on`);
    $("strip").append(button);
  }
  for (const name of about.scenes) {
    addLook(name, async () => (await pictures(await ask(`api/scenes/${encodeURIComponent(name)}`))).arrays[1].slice());
  }
  about.contexts.forEach((name, index) => {
    addLook(name, async () => (await pictures(await ask(`api/contexts/${index}`))).arrays[0].slice());
  });

  const known = restore();
  state.steps = about.steps.includes(state.steps) ? state.steps : about.steps[0];
  $("steps").value = state.steps;
  $("engine").value = state.engine;
  $("second-engine").value = state.secondEngine;
  listVariations();
  listFibres();

  for (const canvas of [$("painted"), $("image")]) {
    canvas.onpointerdown = press;
    canvas.onpointermove = move;
    canvas.onpointerup = canvas.onpointercancel = release;
  }
  $("painted").onblur = () => { cursor.shown = false; draw(); };
  $("size").oninput = () => { state.size = Number($("size").value); buttons(); };
  $("undo").onclick = () => step(true);
  $("redo").onclick = () => step(false);
  $("scene").onchange = () => { if ($("scene").value) start($("scene").value); };
  $("phantom").onclick = () => start(`phantom-${Math.floor(Math.random() * 1e6)}`);
  $("clear").onclick = () => { painter.replace(new Uint8Array(painter.mask.length)); changed(); buttons(); };
  $("mask-file").onchange = () => { load("mask", $("mask-file").files[0]); $("mask-file").value = ""; };
  $("context-file").onchange = () => { load("context", $("context-file").files[0]); $("context-file").value = ""; };
  $("seed").onchange = () => setSeed(/^\d+$/.test($("seed").value) ? BigInt($("seed").value) : state.seed);
  $("next-seed").onclick = () => setSeed(state.seed + 1n);
  $("steps").onchange = () => { state.steps = Number($("steps").value); changed(); };
  $("engine").onchange = () => { state.engine = $("engine").value; changed(); };
  $("second-engine").onchange = () => { state.secondEngine = $("second-engine").value; buttons(); changed(); };
  $("outlines").onchange = () => { state.outlines = $("outlines").checked; if (image) drawImages(); };
  $("save").onclick = () => save(false);
  $("save-folder").onclick = () => save(true);
  $("copy-shell").onclick = () => copy("shell");
  $("copy-python").onclick = () => copy("python");
  for (const [place, kind] of [[$("right"), "context"], [$("left"), "mask"], [$("middle"), "mask"]]) {
    place.ondragover = (event) => { event.preventDefault(); place.classList.add("over"); };
    place.ondragleave = () => place.classList.remove("over");
    place.ondrop = (event) => {
      event.preventDefault();
      place.classList.remove("over");
      load(kind, event.dataTransfer.files[0]);
    };
  }
  document.onkeydown = key;
  window.onpagehide = keep;
  buttons();
  if (known || !about.scenes.length) changed();
  else await start(about.scenes[0]);
  document.documentElement.dataset.ready = "yes";
}

begin();
