"use strict";
(() => {
  const study = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const READER = /^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$/; // cannot start a spreadsheet formula
  const DOUBLE_PRESS = 200; // milliseconds in which a second press is taken for an accident

  // Browsers may refuse storage, for pages from a file above all; then answers live until the page is closed.
  const memory = {
    prefix: `csg-edge:${study.study}`,
    works: true,
    read(key) {
      try { return JSON.parse(localStorage.getItem(`${this.prefix}:${key}`)); } catch { return null; }
    },
    write(key, value) {
      try { localStorage.setItem(`${this.prefix}:${key}`, JSON.stringify(value)); this.works = true; } catch { this.works = false; }
      at("memory").hidden = this.works;
    },
  };

  let session = null; // {reader, role, years, answers: {image: {answer, confidence, milliseconds}}}
  let order = [];
  let position = 0;
  let confidence = "";
  let visibleSince = null; // time is counted while the image is on a visible page
  let elapsed = 0;
  let shownAt = 0;
  let downloaded = true;

  // Each reader has an order of their own, always the same: FNV-1a of the id seeds Mulberry32, which shuffles.
  function orderFor(reader) {
    let state = 2166136261;
    for (const letter of `${study.study}/${reader}`) state = Math.imul(state ^ letter.codePointAt(0), 16777619);
    const random = () => {
      state = (state + 0x6d2b79f5) | 0;
      let value = Math.imul(state ^ (state >>> 15), state | 1);
      value ^= value + Math.imul(value ^ (value >>> 7), value | 61);
      return ((value ^ (value >>> 14)) >>> 0) / 4294967296;
    };
    const indices = study.images.map((_, index) => index);
    for (let last = indices.length - 1; last > 0; last--) {
      const other = Math.floor(random() * (last + 1));
      [indices[last], indices[other]] = [indices[other], indices[last]];
    }
    return indices;
  }

  const current = () => study.images[order[position]];
  const answered = () => Object.keys(session.answers).length;

  function show(id) {
    for (const name of ["intro", "reading", "end"]) at(name).hidden = name !== id;
  }

  function firstOpen() {
    const open = order.findIndex((index) => !session.answers[study.images[index].id]);
    return open < 0 ? order.length : open;
  }

  function begin(values) {
    const known = memory.read(`reader:${values.reader}`);
    session = { ...values, answers: (known && known.answers) || {} };
    for (const id of Object.keys(session.answers)) if (!study.images.some((image) => image.id === id)) delete session.answers[id];
    order = orderFor(session.reader);
    resetView();
    memory.write("last", session.reader);
    save();
    position = firstOpen();
    if (position < order.length) present(); else finish();
  }

  function save() {
    memory.write(`reader:${session.reader}`, session);
  }

  async function present() {
    show("reading");
    pause();
    const image = at("image");
    const earlier = session.answers[current().id];
    elapsed = earlier ? earlier.milliseconds : 0;
    setConfidence(earlier ? earlier.confidence : "");
    at("place").textContent = `Image ${position + 1} of ${order.length}`;
    at("progress").value = answered();
    at("back").disabled = position === 0;
    at("given").textContent = earlier ? `Your answer so far: ${earlier.answer}. Answer again to change it or to go on.` : "";
    for (const kind of ["real", "synthetic"]) at(`answer-${kind}`).classList.toggle("given", Boolean(earlier) && earlier.answer === kind);
    enlarge(false);
    const wanted = current().src;
    image.src = wanted;
    // Focus leaves the answer button, so that the space bar cannot press it again.
    at("stage").focus({ preventScroll: true });
    try { await image.decode(); } catch { /* shown as soon as it can be */ }
    if (image.src !== wanted || at("reading").hidden) return;
    shownAt = performance.now();
    if (!document.hidden) visibleSince = shownAt;
  }

  function pause() {
    if (visibleSince !== null) elapsed += performance.now() - visibleSince;
    visibleSince = null;
  }

  function answer(kind) {
    if (visibleSince === null || performance.now() - shownAt < DOUBLE_PRESS) return;
    pause();
    session.answers[current().id] = { answer: kind, confidence, milliseconds: Math.round(elapsed) };
    downloaded = false;
    save();
    position += 1;
    if (position < order.length) present(); else finish();
  }

  function back() {
    if (position === 0) return;
    position -= 1;
    present();
  }

  function setConfidence(level) {
    confidence = level;
    for (const input of document.getElementsByName("confidence")) input.checked = input.value === level;
  }

  function enlarge(on, event) {
    at("stage").classList.toggle("large", on);
    at("zoom").setAttribute("aria-pressed", String(on));
    const box = at("stage").getBoundingClientRect();
    at("image").style.transformOrigin = event
      ? `${(100 * (event.clientX - box.left)) / box.width}% ${(100 * (event.clientY - box.top)) / box.height}%`
      : "center";
  }

  function setView() {
    at("image").style.filter = `brightness(${at("brightness").value}%) contrast(${at("contrast").value}%)`;
  }

  function resetView() {
    at("brightness").value = at("contrast").value = 100;
    setView();
    enlarge(false);
  }

  function csv() {
    const rows = order
      .map((index) => study.images[index].id)
      .filter((id) => session.answers[id])
      .map((id) => {
        const given = session.answers[id];
        return [study.study, session.reader, session.role, session.years, id, given.answer, given.confidence, given.milliseconds];
      });
    return [["study", "reader", "role", "years", "image", "answer", "confidence", "milliseconds"], ...rows].map((row) => row.join(",")).join("\r\n") + "\r\n";
  }

  function finish() {
    pause();
    show("end");
    const open = order.length - answered();
    at("summary").textContent = open ? `${answered()} of ${order.length} images answered` : `All ${order.length} images answered. Thank you.`;
    at("remaining").textContent = open ? `${open} images are still open. You may go on now, or later in this browser with the same reader id.` : "One thing is left: save your answers.";
    at("csv").value = csv();
    at("summary").focus({ preventScroll: true });
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    link.download = `answers-${study.study}-${session.reader}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    downloaded = true;
  }

  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const values = { reader: at("reader").value.trim(), role: at("role").value, years: at("years").value.trim() };
    const problem = (id, text) => { at("problem").textContent = text; at(id).focus(); };
    if (!READER.test(values.reader)) return problem("reader", "Give a reader id: up to 40 letters, digits, dots or dashes, a letter or digit first.");
    if (!values.role) return problem("role", "Choose what describes your experience best.");
    if (!/^\d{1,2}$/.test(values.years)) return problem("years", "Give your years with ultrasound as a whole number, 0 if none.");
    at("problem").textContent = "";
    begin(values);
  });
  for (const kind of ["real", "synthetic"]) at(`answer-${kind}`).addEventListener("click", () => answer(kind));
  at("back").addEventListener("click", back);
  at("stop").addEventListener("click", finish);
  at("go-on").addEventListener("click", () => { position = Math.min(firstOpen(), order.length - 1); present(); });
  at("download").addEventListener("click", download);
  at("select").addEventListener("click", () => { at("csv").focus(); at("csv").select(); });
  at("other").addEventListener("click", () => { memory.write("last", null); at("form").reset(); show("intro"); at("reader").focus(); });
  at("image").addEventListener("click", (event) => enlarge(!at("stage").classList.contains("large"), event));
  at("zoom").addEventListener("click", () => enlarge(!at("stage").classList.contains("large")));
  at("reset").addEventListener("click", resetView);
  for (const id of ["brightness", "contrast"]) at(id).addEventListener("input", setView);
  // After a mouse has set something, the arrow keys answer again.
  at("confidence").addEventListener("click", (event) => { if (event.detail) at("stage").focus({ preventScroll: true }); });
  for (const id of ["brightness", "contrast"]) at(id).addEventListener("pointerup", () => at("stage").focus({ preventScroll: true }));
  at("confidence").addEventListener("change", (event) => { confidence = event.target.value; });

  document.addEventListener("keydown", (event) => {
    if (at("reading").hidden || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const target = event.target;
    // Controls keep the keys they need: sliders and the scale their arrows, buttons the space bar.
    if (key.startsWith("Arrow") && target.tagName === "INPUT") return;
    if (key === " " && (target.tagName === "BUTTON" || target.tagName === "INPUT")) return;
    const actions = {
      r: () => answer("real"), ArrowLeft: () => answer("real"),
      s: () => answer("synthetic"), ArrowRight: () => answer("synthetic"),
      " ": back, Backspace: back,
      z: () => enlarge(!at("stage").classList.contains("large")),
    };
    if (/^[1-5]$/.test(key)) setConfidence(key);
    else if (Object.hasOwn(actions, key)) actions[key]();
    else return;
    event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (at("reading").hidden || !session) return;
    if (document.hidden) pause();
    else if (visibleSince === null) visibleSince = performance.now();
  });
  window.addEventListener("beforeunload", (event) => {
    if (session && !memory.works && !downloaded) event.preventDefault();
  });

  memory.write("probe", 1);
  const last = memory.read("last");
  const known = last && READER.test(last) ? memory.read(`reader:${last}`) : null;
  if (known && known.reader === last) begin(known);
})();
