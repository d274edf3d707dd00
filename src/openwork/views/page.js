// Draws the circuits of a page and answers the pointer and the keyboard. Text from a run enters the document only as
// text (textContent, attributes); places come ready from Python.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const tip = document.getElementById("tip");
  const GUTTER = 104, PAD = 30, MAX_LABEL = 14;
  const MANY = 1200; // edges from which straight, undashed lines are drawn and the picture is reused while it moves
  const START = 3000; // edges shown at first, strongest first; the slider shows the rest
  const HOPS = [1, 0.6, 0.36, 0.24]; // opacity of paths by distance from the node in focus

  // -- small things ---------------------------------------------------------------------------------------------------

  function make(tag, props, ...kids) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(props || {})) {
      if (v === undefined || v === null || v === false) continue;
      if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
      else if (k === "class") e.className = v;
      else e.setAttribute(k, v === true ? "" : v);
    }
    e.append(...kids.filter((x) => x !== null && x !== undefined));
    return e;
  }

  function draw(tag, props, ...kids) {
    const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [k, v] of Object.entries(props || {})) e.setAttribute(k, v);
    e.append(...kids);
    return e;
  }

  function num(x) {
    if (typeof x !== "number" || !isFinite(x)) return "–";
    const a = Math.abs(x);
    const s = a !== 0 && a < 0.001 ? a.toExponential(1) : a < 1 ? a.toFixed(3) : a < 1000 ? a.toPrecision(3) : Math.round(a).toLocaleString("en");
    return (x < 0 ? "−" : "") + s;
  }
  const signed = (x) => (x > 0 ? "+" : "") + num(x);
  const visible = (s) => s.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
  const cut = (s) => (s.length > MAX_LABEL ? s.slice(0, MAX_LABEL - 1) + "…" : s);
  const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

  const unpacked = new Map();
  function unpack(n) {
    if (!unpacked.has(n)) {
      unpacked.set(n, (async () => {
        const packed = atob(document.getElementById("drawing-" + n).textContent.trim());
        const bytes = Uint8Array.from(packed, (c) => c.charCodeAt(0));
        const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
        return prepare(JSON.parse(await new Response(stream).text()));
      })());
    }
    return unpacked.get(n);
  }

  let ink = {};
  function readColours() {
    const s = getComputedStyle(document.documentElement);
    for (const k of ["paper", "card", "ink", "soft", "faint", "line", "plus", "minus", "carry", "focus", "sans", "mono"])
      ink[k] = s.getPropertyValue("--" + k).trim();
    ink.plusRgb = s.getPropertyValue("--plus-rgb").trim();
    ink.minusRgb = s.getPropertyValue("--minus-rgb").trim();
  }

  // -- a circuit, ready to be drawn -----------------------------------------------------------------------------------

  function prepare(g) {
    g.ins = g.nodes.map(() => []);
    g.outs = g.nodes.map(() => []);
    g.lines = []; // every line of the drawing: {a, b, w, kind}; kind is "edge", "carry" or "attend"
    const add = (a, b, w, kind) => {
      const line = { a, b, w, kind };
      g.outs[a].push(line);
      g.ins[b].push(line);
      g.lines.push(line);
    };
    for (const [a, b, w] of g.edges) add(a, b, w, "edge");
    for (const [a, b] of g.residual) add(a, b, 0, "carry");
    for (const [a, b] of g.attends) add(a, b, 0, "attend");
    g.ranked = g.lines.filter((l) => l.kind === "edge").sort((p, q) => Math.abs(q.w) - Math.abs(p.w));
    g.top = g.ranked.length ? Math.abs(g.ranked[0].w) || 1 : 1;
    const typical = g.ranked.length ? Math.abs(g.ranked[Math.floor(g.ranked.length * 0.05)].w) || 1 : 1;
    for (const l of g.lines) l.size = Math.sqrt(Math.min(1, Math.abs(l.w) / typical));
    g.most = Math.max(1e-9, ...g.nodes.map((n) => Math.abs(n.effect || 0)));
    g.at = new Map(g.nodes.map((n, i) => [n.id, i]));
    const row = new Map();
    g.rows.forEach((r, k) => r.sites.forEach((s) => row.set(s, k)));
    g.kx = g.ky = 1;
    for (const n of g.nodes) [n.x0, n.y0] = [n.x, n.y];
    for (const r of g.rows) [r.top0, r.bottom0] = [r.top, r.bottom];
    g.byRow = g.rows.map(() => []);
    g.nodes.forEach((n, i) => { n.row = row.get(n.site); g.byRow[n.row].push(i); });
    for (const r of g.byRow) {
      r.sort((i, j) => g.nodes[i].x - g.nodes[j].x);
      r.forEach((i, k) => {
        g.nodes[i].next = r[k + 1];
        g.nodes[i].room = k + 1 < r.length ? g.nodes[r[k + 1]].x - g.nodes[i].x : 60;
      });
    }
    const xs = g.nodes.map((n) => n.x);
    g.left = Math.min(...xs, Infinity);
    g.right = Math.max(...xs, -Infinity);
    for (const n of g.nodes) {
      n.r = 2.8 + 4.2 * Math.sqrt(Math.abs(n.effect || 0) / g.most);
      if (n.label !== undefined) n.text = cut(visible(n.label));
    }
    g.many = g.lines.length > MANY;
    return g;
  }

  /** Every line on a path through node i, with how many steps it is away; nearest first. */
  function paths(g, i) {
    const found = new Map();
    for (const [side, end] of [["ins", "a"], ["outs", "b"]]) {
      const seen = new Set([i]);
      let front = [i];
      for (let hop = 0; front.length && hop < (g.many ? 3 : 99); hop++) {
        const next = [];
        for (const n of front) {
          for (const l of g[side][n]) {
            if (!found.has(l)) found.set(l, hop);
            if (!seen.has(l[end])) { seen.add(l[end]); next.push(l[end]); }
          }
        }
        front = next;
      }
    }
    let lines = [...found].sort((p, q) => p[1] - q[1] || Math.abs(q[0].w) - Math.abs(p[0].w));
    if (g.many) lines = lines.filter(([, hop], k) => hop === 0 || k < 700);
    const nodes = new Map([[i, 0]]);
    for (const [l, hop] of lines) for (const n of [l.a, l.b]) if (!nodes.has(n)) nodes.set(n, hop);
    return { lines, nodes };
  }

  // -- one drawing ----------------------------------------------------------------------------------------------------

  class Pane {
    constructor(stage, start, place) {
      this.stage = stage;
      this.place = place; // 0 or 1: left or right
      this.hover = this.selected = -1;
      this.focus = null; // paths of the node in focus
      this.canvas = make("canvas", { tabindex: 0, role: "application" });
      this.layer = document.createElement("canvas");
      this.which = make("div", { class: "which" });
      this.find = make("input", { type: "search", placeholder: "Find a node", "aria-label": "Find a node by name", list: `${stage.task.id}-ids-${start}` });
      this.ids = make("datalist", { id: `${stage.task.id}-ids-${start}` });
      this.range = make("input", { type: "range", min: 0, max: 100, step: "any", value: 100, "aria-label": "Edges shown, strongest first" });
      this.shown = make("output", {});
      this.tools = make("div", { class: "tools" }, this.find, this.ids, make("label", {}, this.range, this.shown),
        make("button", { type: "button", "aria-label": "Zoom out", title: "Zoom out", onclick: () => this.zoom(1 / 1.4) }, "−"),
        make("button", { type: "button", "aria-label": "Fit the whole circuit", title: "Fit the whole circuit", onclick: () => this.fit() }, "fit"),
        make("button", { type: "button", "aria-label": "Zoom in", title: "Zoom in", onclick: () => this.zoom(1.4) }, "+"));
      this.view = make("div", { class: "view" });
      this.element = make("div", { class: "pane" }, make("header", {}, this.which, this.tools), this.view);
      this.find.addEventListener("change", () => this.search());
      this.find.addEventListener("keydown", (e) => { if (e.key === "Enter") this.search(); });
      this.range.addEventListener("input", () => { this.cutPaths(); this.render(); });
      this.listen();
      new ResizeObserver(() => this.resize()).observe(this.view);
      this.show(start);
    }

    async show(k) {
      this.index = k;
      const info = this.stage.task.panes[k];
      this.g = null;
      this.hover = this.selected = -1;
      this.focus = null;
      const titles = this.stage.task.panes;
      const name = titles.length > 2
        ? make("select", { "aria-label": "Circuit shown", onchange: (e) => this.show(Number(e.target.value)).then(() => this.stage.guide()) },
            ...titles.map((t, i) => make("option", { value: i, selected: i === k }, t.title)))
        : make("b", {}, info.title);
      this.which.replaceChildren(name, make("span", {}, info.facts));
      const button = this.stage.choose && this.stage.choose.children[this.place];
      if (button) button.textContent = info.title;
      this.canvas.setAttribute("aria-label", `Circuit of the ${info.title} model. Arrow keys move between nodes, plus and minus zoom, 0 fits, Escape clears.`);
      this.tools.hidden = info.blob === null;
      if (info.blob === null) { this.view.replaceChildren(make("p", { class: "empty" }, info.note)); return; }
      this.view.replaceChildren(this.canvas);
      try {
        this.g = await unpack(info.blob);
      } catch (e) {
        this.view.replaceChildren(make("p", { class: "empty" }, "This browser cannot unpack the drawing; a current one can."));
        return;
      }
      if (this.index !== k) return;
      if (!this.g.nodes.length) { this.tools.hidden = true; this.view.replaceChildren(make("p", { class: "empty" }, "An empty circuit: nothing was kept.")); return; }
      this.ids.replaceChildren(...this.g.nodes.map((n) => make("option", { value: n.id })));
      this.range.value = this.g.ranked.length > START ? (100 * Math.log(START)) / Math.log(this.g.ranked.length) : 100;
      this.cutPaths();
      this.resize();
      this.fit();
    }

    // The strongest edges that the slider lets through, as a few shapes that are stroked at once.
    cutPaths() {
      const g = this.g;
      if (!g) return;
      const n = g.ranked.length;
      const limit = this.range.value >= 100 ? n : Math.max(Math.min(n, 1), Math.round(n ** (this.range.value / 100)));
      this.limit = limit;
      this.shown.textContent = limit === n ? "all edges" : `top ${limit.toLocaleString("en")}`;
      this.shown.title = `${limit.toLocaleString("en")} of ${count(n, "edge")}, strongest first; those of the embedding and unembedding included`;
      this.least = limit && limit < n ? Math.abs(g.ranked[limit - 1].w) : 0;
      this.straight = limit + g.residual.length > MANY;
      this.carries = new Path2D();
      for (const l of g.lines) if (l.kind === "carry") this.trace(this.carries, l);
      this.buckets = [];
      for (let level = 0; level < 5; level++) for (const sign of [1, -1]) this.buckets.push({ level, sign, path: new Path2D() });
      for (let k = 0; k < limit; k++) {
        const l = g.ranked[k];
        this.trace(this.buckets[2 * Math.min(4, Math.floor(l.size * 5)) + (l.w < 0 ? 1 : 0)].path, l);
      }
    }

    trace(path, l) {
      const a = this.g.nodes[l.a], b = this.g.nodes[l.b];
      path.moveTo(a.x, a.y);
      if (a.row === b.row) {
        const lift = 10 + Math.min(22, Math.abs(a.x - b.x) / 5);
        path.quadraticCurveTo((a.x + b.x) / 2, Math.min(a.y, b.y) - lift, b.x, b.y);
      } else if (this.straight && l.kind === "edge") path.lineTo(b.x, b.y);
      else {
        const bend = (b.y - a.y) * 0.45;
        path.bezierCurveTo(a.x, a.y + bend, b.x, b.y - bend, b.x, b.y);
      }
    }

    resize() {
      const box = this.view.getBoundingClientRect();
      if (!this.g || !box.width) return;
      const ratio = Math.min(2, window.devicePixelRatio || 1);
      const w = Math.round(box.width), h = Math.round(box.height);
      if (w === this.w && h === this.h && ratio === this.ratio) return;
      const first = !this.w;
      [this.w, this.h, this.ratio] = [w, h, ratio];
      for (const c of [this.canvas, this.layer]) { c.width = w * ratio; c.height = h * ratio; }
      if (first || !this.moved) this.fit();
      else this.render();
    }

    // The whole circuit in view. Rows are drawn apart, or wider, as the pane has room for it.
    fit() {
      const g = this.g;
      if (!g || !this.w) return;
      const sx = (this.w - GUTTER - PAD) / Math.max(160, g.right - g.left + 40), sy = (this.h - 2 * PAD - 14) / Math.max(40, g.height);
      this.s = Math.min(sx, sy, 1.5);
      this.stretch(Math.min(sx / this.s, 2.2), Math.min(sy / this.s, 1.4));
      this.tx = GUTTER + (this.w - GUTTER - PAD) / 2 - ((g.left + g.right) / 2) * g.kx * this.s;
      this.ty = (this.h - g.height * g.ky * this.s) / 2 + 4;
      this.base = this.s;
      this.moved = false;
      this.render();
    }

    stretch(kx, ky) {
      const g = this.g;
      if (Math.abs(g.kx - kx) < 0.01 && Math.abs(g.ky - ky) < 0.01) return;
      [g.kx, g.ky] = [kx, ky];
      for (const n of g.nodes) [n.x, n.y] = [n.x0 * kx, n.y0 * ky];
      for (const r of g.rows) [r.top, r.bottom] = [r.top0 * ky, r.bottom0 * ky];
      this.cutPaths();
    }

    zoom(k, x = GUTTER + (this.w - GUTTER) / 2, y = this.h / 2) {
      if (!this.g) return;
      k = Math.min(k, 12 / this.s);
      k = Math.max(k, (this.base * 0.5) / this.s);
      this.tx = x - (x - this.tx) * k;
      this.ty = y - (y - this.ty) * k;
      this.s *= k;
      this.move();
    }

    // The view changed: at once from the picture at hand, and sharp again when it rests.
    move() {
      this.moved = true;
      if (!this.g.many) { this.render(); return; }
      this.paint();
      clearTimeout(this.rest);
      this.rest = setTimeout(() => this.render(), 140);
    }

    render() {
      if (!this.g || !this.w) return;
      const c = this.layer.getContext("2d"), k = this.ratio;
      c.setTransform(1, 0, 0, 1, 0, 0);
      c.clearRect(0, 0, this.layer.width, this.layer.height);
      c.setTransform(k * this.s, 0, 0, k * this.s, k * this.tx, k * this.ty);
      c.setLineDash([]);
      c.strokeStyle = ink.carry;
      c.lineWidth = 0.8 / this.s;
      c.globalAlpha = this.g.residual.length > 300 ? 0.22 : 0.5;
      c.stroke(this.carries);
      const n = this.limit, calm = Math.min(1, Math.sqrt(300 / Math.max(1, n)));
      for (const b of this.buckets) {
        c.strokeStyle = b.sign > 0 ? ink.plus : ink.minus;
        c.lineWidth = (0.5 + 0.5 * b.level) * (n > 500 ? 0.7 : 1) / this.s;
        c.globalAlpha = Math.min(1, (0.2 + 0.19 * b.level) * calm);
        c.setLineDash(b.sign < 0 && !this.straight ? [5 / this.s, 3.5 / this.s] : []);
        c.stroke(b.path);
      }
      this.seen = { s: this.s, tx: this.tx, ty: this.ty };
      this.paint();
    }

    paint() {
      if (this.asked) return;
      this.asked = requestAnimationFrame(() => { this.asked = 0; this.paintNow(); });
    }

    paintNow() {
      const g = this.g;
      if (!g || !this.seen) return;
      const c = this.canvas.getContext("2d"), k = this.ratio, z = this.s / this.seen.s;
      c.setTransform(1, 0, 0, 1, 0, 0);
      c.globalAlpha = 1;
      c.setLineDash([]);
      c.clearRect(0, 0, this.canvas.width, this.canvas.height);
      c.setTransform(k, 0, 0, k, 0, 0);
      c.strokeStyle = ink.line;
      c.lineWidth = 1;
      c.globalAlpha = 0.55;
      for (const r of g.rows) {
        const y = Math.round(((r.top + r.bottom) / 2) * this.s + this.ty) + 0.5;
        c.beginPath(); c.moveTo(GUTTER - 4, y); c.lineTo(this.w, y); c.stroke();
      }
      c.globalAlpha = this.focus ? 0.13 : 1;
      c.drawImage(this.layer, this.tx - this.seen.tx * z, this.ty - this.seen.ty * z, this.w * z, this.h * z);
      if (this.focus) this.paintPaths(c);
      this.paintNodes(c);
      this.paintGutter(c);
    }

    paintPaths(c) {
      c.save();
      c.translate(this.tx, this.ty);
      c.scale(this.s, this.s);
      for (const [l, hop] of [...this.focus.lines].reverse()) {
        if (l.kind === "edge" && Math.abs(l.w) < this.least) continue;
        const path = new Path2D();
        this.trace(path, l);
        c.globalAlpha = HOPS[Math.min(hop, HOPS.length - 1)] * (l.kind === "attend" ? 0.6 : 1);
        c.strokeStyle = l.kind !== "edge" ? ink.carry : l.w < 0 ? ink.minus : ink.plus;
        c.lineWidth = (l.kind !== "edge" ? 1 : 0.9 + 2.3 * l.size) / this.s;
        c.setLineDash(l.kind === "attend" ? [1 / this.s, 3 / this.s] : l.w < 0 ? [5 / this.s, 3.5 / this.s] : []);
        c.stroke(path);
      }
      c.restore();
    }

    paintNodes(c) {
      const g = this.g, grow = Math.max(0.42, Math.min(1.7, Math.sqrt(this.s) * 1.05));
      c.lineJoin = "round";
      for (const pass of [0, 1]) {
        for (let i = 0; i < g.nodes.length; i++) {
          const lit = !this.focus || this.focus.nodes.has(i);
          if ((pass === 1) !== lit) continue;
          const n = g.nodes[i], x = n.x * this.s + this.tx, y = n.y * this.s + this.ty;
          if (x < -40 || y < -40 || x > this.w + 40 || y > this.h + 40) continue;
          c.globalAlpha = lit ? 1 : 0.28;
          if (n.text !== undefined) this.paintChip(c, n, x, y, i);
          else this.paintDot(c, n, x, y, n.r * grow, i);
        }
      }
      c.globalAlpha = 1;
    }

    paintDot(c, n, x, y, r, i) {
      const solid = n.kind === "neuron" || n.kind === "value" || n.kind === "query" || n.kind === "key";
      c.beginPath();
      if (n.kind === "write") { const d = r * 1.3; c.moveTo(x, y - d); c.lineTo(x + d, y); c.lineTo(x, y + d); c.lineTo(x - d, y); c.closePath(); }
      else if (n.kind === "embed") { const d = r * 1.25; c.moveTo(x, y - d); c.lineTo(x + d, y + d * 0.8); c.lineTo(x - d, y + d * 0.8); c.closePath(); }
      else if (solid && n.kind !== "neuron") c.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
      else c.arc(x, y, r, 0, 2 * Math.PI);
      c.fillStyle = solid ? ink.ink : ink.card;
      c.strokeStyle = ink.ink;
      c.lineWidth = r < 2 ? 0.8 : 1.3;
      c.fill();
      c.stroke();
      this.ring(c, x, y, r + 4, i);
      if (this.s < 0.45) return;
      const text = String(n.index);
      const next = n.next === undefined ? 0 : (r * this.g.nodes[n.next].r) / n.r;
      if (n.room * this.g.kx * this.s < r + next * 1.3 + 6 + 5.4 * text.length) return;
      c.font = `9.5px ${ink.sans}`;
      c.textAlign = "left";
      this.halo(c, text, x + r + 3, y + 3.4, ink.soft);
    }

    paintChip(c, n, x, y, i) {
      c.font = `12px ${ink.mono}`;
      const w = c.measureText(n.text).width + 12;
      c.beginPath();
      c.roundRect(x - w / 2, y - 10, w, 20, 5);
      c.fillStyle = ink.card;
      c.strokeStyle = i === this.selected || i === this.hover ? ink.focus : ink.ink;
      c.lineWidth = i === this.selected ? 2 : 1.1;
      c.fill();
      c.stroke();
      c.fillStyle = ink.ink;
      c.textAlign = "center";
      c.fillText(n.text, x, y + 4);
    }

    ring(c, x, y, r, i) {
      if (i !== this.selected && i !== this.hover) return;
      c.beginPath();
      c.arc(x, y, r, 0, 2 * Math.PI);
      c.strokeStyle = ink.focus;
      c.lineWidth = i === this.selected ? 2.4 : 1.4;
      c.stroke();
    }

    halo(c, text, x, y, colour) {
      c.lineWidth = 3;
      c.strokeStyle = ink.card;
      c.strokeText(text, x, y);
      c.fillStyle = colour;
      c.fillText(text, x, y);
    }

    paintGutter(c) {
      const g = this.g;
      c.globalAlpha = 0.9;
      c.fillStyle = ink.card;
      c.fillRect(0, 0, GUTTER - 4, this.h);
      c.globalAlpha = 1;
      const blocks = new Map();
      c.font = `11.5px ${ink.sans}`;
      c.textAlign = "right";
      g.rows.forEach((r, k) => {
        const top = r.top * this.s + this.ty, bottom = r.bottom * this.s + this.ty, y = (top + bottom) / 2;
        c.fillStyle = this.selected >= 0 && g.nodes[this.selected].row === k ? ink.ink : ink.soft;
        c.fillText(r.label, GUTTER - 12, y + 4);
        if (r.block) {
          const b = blocks.get(r.block) || [Infinity, -Infinity];
          blocks.set(r.block, [Math.min(b[0], top), Math.max(b[1], bottom)]);
        }
        if (r.sites.length > 1 && this.s > 0.4) {
          c.font = `italic 10.5px ${ink.sans}`;
          c.textAlign = "center";
          for (const s of r.sites) {
            const xs = g.byRow[k].filter((i) => g.nodes[i].site === s).map((i) => g.nodes[i].x);
            const x = ((Math.min(...xs) + Math.max(...xs)) / 2) * this.s + this.tx;
            if (x > GUTTER) this.halo(c, s.slice(s.lastIndexOf(".") + 1), x, top - 10, ink.faint);
          }
          c.font = `11.5px ${ink.sans}`;
          c.textAlign = "right";
        }
      });
      c.textAlign = "center";
      c.font = `10.5px ${ink.sans}`;
      for (const [name, [top, bottom]] of blocks) {
        c.fillStyle = c.strokeStyle = ink.faint;
        c.lineWidth = 1;
        c.beginPath(); c.moveTo(20.5, top - 5); c.lineTo(20.5, bottom + 5); c.stroke();
        c.save();
        c.translate(14, (top + bottom) / 2);
        c.rotate(-Math.PI / 2);
        c.fillText(name, 0, 0);
        c.restore();
      }
    }

    // -- pointer and keyboard

    hit(e) {
      const box = this.canvas.getBoundingClientRect(), px = e.clientX - box.left, py = e.clientY - box.top;
      let best = -1, least = 14 * 14;
      this.g.nodes.forEach((n, i) => {
        let dx = Math.abs(n.x * this.s + this.tx - px);
        const dy = n.y * this.s + this.ty - py;
        if (n.text !== undefined) dx = Math.max(0, dx - n.text.length * 3.6);
        const d = dx * dx + dy * dy;
        if (d < least) { least = d; best = i; }
      });
      return best;
    }

    listen() {
      const c = this.canvas;
      let from = null, dragged = false;
      c.addEventListener("pointerdown", (e) => {
        if (!this.g) return;
        from = [e.clientX, e.clientY];
        dragged = false;
        c.setPointerCapture(e.pointerId);
      });
      c.addEventListener("pointermove", (e) => {
        if (!this.g) return;
        if (from) {
          const dx = e.clientX - from[0], dy = e.clientY - from[1];
          if (!dragged && Math.hypot(dx, dy) < 4) return;
          dragged = true;
          c.classList.add("drag");
          tip.hidden = true;
          this.tx += dx;
          this.ty += dy;
          from = [e.clientX, e.clientY];
          this.move();
          return;
        }
        this.point(this.hit(e), e);
      });
      c.addEventListener("pointerup", (e) => {
        c.classList.remove("drag");
        if (from && !dragged) this.select(this.hit(e));
        from = null;
      });
      c.addEventListener("pointercancel", () => { from = null; });
      c.addEventListener("pointerleave", () => this.point(-1));
      c.addEventListener("wheel", (e) => {
        if (!this.g || !(e.ctrlKey || e.metaKey || document.activeElement === c)) return;
        e.preventDefault();
        const box = c.getBoundingClientRect();
        this.zoom(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0018)), e.clientX - box.left, e.clientY - box.top);
      }, { passive: false });
      c.addEventListener("dblclick", (e) => {
        const box = c.getBoundingClientRect();
        this.zoom(1.8, e.clientX - box.left, e.clientY - box.top);
      });
      c.addEventListener("keydown", (e) => {
        if (!this.g) return;
        const act = {
          "+": () => this.zoom(1.4), "=": () => this.zoom(1.4), "-": () => this.zoom(1 / 1.4), 0: () => this.fit(),
          Escape: () => this.select(-1), ArrowLeft: () => this.step(-1, 0), ArrowRight: () => this.step(1, 0),
          ArrowUp: () => this.step(0, 1), ArrowDown: () => this.step(0, -1), Enter: () => this.stage.panel.focus(),
        }[e.key];
        if (act && !e.ctrlKey && !e.metaKey && !e.altKey) { e.preventDefault(); act(); }
      });
    }

    /** Keyboard: to the next node of the row, or to the nearest one in the next row that has any. */
    step(dx, dy) {
      const g = this.g;
      if (this.selected < 0) { this.select(g.byRow.find((r) => r.length)[0], true); return; }
      const n = g.nodes[this.selected], row = g.byRow[n.row];
      if (dx) { this.select(row[Math.max(0, Math.min(row.length - 1, row.indexOf(this.selected) + dx))], true); return; }
      for (let k = n.row + dy; k >= 0 && k < g.byRow.length; k += dy) {
        if (!g.byRow[k].length) continue;
        this.select(g.byRow[k].reduce((a, b) => (Math.abs(g.nodes[a].x - n.x) <= Math.abs(g.nodes[b].x - n.x) ? a : b)), true);
        return;
      }
    }

    point(i, e) {
      this.canvas.classList.toggle("over", i >= 0);
      if (i >= 0 && e) {
        const n = this.g.nodes[i];
        tip.textContent = n.label !== undefined ? `${visible(n.label)}  (${n.id})` : n.id + (typeof n.effect === "number" ? `   ablated ${signed(n.effect)} nats` : "");
        tip.hidden = false;
        const x = Math.min(e.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
        tip.style.left = x + "px";
        tip.style.top = e.clientY + 18 + "px";
      } else tip.hidden = true;
      if (i === this.hover) return;
      this.hover = i;
      this.light();
    }

    select(i, reveal) {
      this.selected = i;
      if (reveal && i >= 0) this.reveal(i);
      this.light();
      this.stage.selected(this, i);
    }

    reveal(i) {
      const n = this.g.nodes[i], x = n.x * this.s + this.tx, y = n.y * this.s + this.ty;
      if (x > GUTTER + 8 && x < this.w - 20 && y > 20 && y < this.h - 20) return;
      this.tx += (this.w + GUTTER) / 2 - x;
      this.ty += this.h / 2 - y;
      this.move();
    }

    light() {
      const i = this.hover >= 0 ? this.hover : this.selected;
      this.focus = i >= 0 && this.g ? paths(this.g, i) : null;
      this.paint();
    }

    search() {
      const q = this.find.value.trim().toLowerCase();
      if (!q || !this.g) return;
      const all = this.g.nodes;
      let i = all.findIndex((n) => n.id.toLowerCase() === q);
      if (i < 0) i = all.findIndex((n) => n.label !== undefined && (n.label.toLowerCase() === q || n.label.trim().toLowerCase() === q));
      if (i < 0) i = all.findIndex((n) => n.id.toLowerCase().includes(q));
      this.find.setCustomValidity(i < 0 ? "No node of this circuit has that name." : "");
      if (i < 0) this.find.reportValidity();
      else this.select(i, true);
    }
  }

  // -- the stage of a task: its panes and the panel -------------------------------------------------------------------

  class Stage {
    constructor(element, task) {
      this.task = task;
      this.tab = "top";
      this.panel = make("aside", { class: "panel", tabindex: -1, "aria-label": "The selected node" });
      const second = task.panes.findIndex((p, k) => k > 0 && p.blob !== null);
      const shown = task.panes.length > 1 ? [0, second > 0 ? second : 1] : [0];
      this.panes = shown.map((k, i) => new Pane(this, k, i));
      this.frame = make("div", { class: "panes", "data-show": 0 }, ...this.panes.map((p) => p.element));
      element.classList.toggle("bare", task.panes.every((p) => p.blob === null));
      this.legend = make("div", { class: "legend" });
      this.choose = make("div", { class: "choose", role: "group", "aria-label": "Circuit shown" }, ...shown.map((k, i) =>
        make("button", { type: "button", "aria-pressed": String(i === 0), onclick: (e) => {
          this.frame.dataset.show = i;
          for (const b of this.choose.children) b.setAttribute("aria-pressed", b === e.currentTarget);
        } }, task.panes[k].title)));
      element.replaceChildren(...(shown.length > 1 ? [this.choose] : []), this.frame, this.panel, this.legend);
      this.guide();
    }

    selected(pane, i) {
      for (const p of this.panes) if (p !== pane && p.selected >= 0) { p.selected = -1; p.light(); }
      if (i < 0) this.guide();
      else this.tell(pane, i);
    }

    // What stands in the panel while no node is selected: how to begin, and where.
    async guide() {
      const head = [
        make("p", { class: "guide" }, make("b", {}, "Select a node"), " to see what excites it, what it is wired to, and what the task loses without it."),
        make("p", { class: "guide" }, "Drag to move, scroll to zoom once the drawing is clicked. With the keyboard: ", ...["←", "→", "↑", "↓"].map((k) => make("kbd", {}, k)), " walk the nodes, ", make("kbd", {}, "+"), " ", make("kbd", {}, "−"), " ", make("kbd", {}, "0"), " zoom and fit."),
      ];
      this.panel.replaceChildren(...head);
      const drawings = await Promise.all(this.panes.map((p) => this.task.panes[p.index].blob).filter((b) => b !== null).map((b) => unpack(b).catch(() => null)));
      this.legend.replaceChildren(...(drawings.some((g) => g && g.nodes.length) ? legend(drawings.filter((g) => g)) : []));
      for (const p of this.panes) {
        const info = this.task.panes[p.index];
        if (info.blob === null) continue;
        let g;
        try { g = await unpack(info.blob); } catch (e) { continue; }
        if (this.panes.some((q) => q.selected >= 0)) return;
        const best = g.nodes.map((n, i) => i).filter((i) => typeof g.nodes[i].effect === "number").sort((a, b) => Math.abs(g.nodes[b].effect) - Math.abs(g.nodes[a].effect)).slice(0, 8);
        if (!best.length) continue;
        this.panel.append(
          make("h4", {}, `${info.title}: largest effects`, make("small", {}, "loss when ablated")),
          make("ul", { class: "nodes-list" }, ...best.map((i) => this.row(p, g, i, g.nodes[i].effect, g.most))));
      }
    }

    tell(pane, i) {
      const g = pane.g, n = g.nodes[i];
      const title = make("h3", { tabindex: -1 }, n.label !== undefined ? visible(n.label) : n.id);
      const parts = [title, make("p", {}, n.words + (n.label !== undefined ? `, ${n.id}` : "") + (this.panes.length > 1 ? ` · ${this.task.panes[pane.index].title}` : ""))];
      if (typeof n.effect === "number") {
        const word = Math.abs(n.effect) < 5e-4 ? "Without it the task loss stays as it is." : n.effect > 0 ? "more task loss when it alone is ablated in the circuit." : "less task loss when it alone is ablated: the circuit does better without it.";
        parts.push(make("dl", { class: "effect" }, make("dt", {}, Math.abs(n.effect) < 5e-4 ? "0.000" : signed(n.effect), make("small", {}, " nats")), make("dd", {}, word + (typeof n.mean === "number" ? ` Ablated, it sends its mean, ${num(n.mean)}.` : ""))));
      }
      for (const e of n.said || []) {
        parts.push(
          make("h4", {}, "In words", make("small", {}, `by ${e.author}`)),
          make("p", { class: "said" }, e.text),
          make("p", { class: `mark ${e.icon}`, title: e.sentence }, make("b", {}, e.mark), e.score ? ` · ${e.score}, ${e.null}` : ""));
      }
      if (n.top) parts.push(...this.contexts(g, n));
      else if (n.tokens === undefined && n.label === undefined) {
        const f = g.contexts_for;
        parts.push(make("h4", {}, "Contexts"), make("p", { class: "guide" }, f && f.nodes < f.of ? `Not collected: in a circuit of ${f.of} nodes only the ${f.nodes} with the largest estimated effect have contexts.` : "None were collected for this node."));
      }
      if (n.tokens && n.tokens.length) {
        const most = Math.max(...n.tokens.map((t) => Math.abs(t.weight)));
        parts.push(make("h4", {}, "Tokens that write it", make("small", {}, "embedding weight")), make("ul", { class: "nodes-list" }, ...n.tokens.map((t) => make("li", { class: "plain" }, make("span", {}, visible(t.token)), bar(t.weight / most), make("span", { class: "w" }, num(t.weight))))));
      }
      const of = (lines, kind) => lines.filter((l) => l.kind === kind);
      parts.push(...this.edges(pane, "Reads from", of(g.ins[i], "edge"), "a"));
      parts.push(...this.edges(pane, "Sends to", of(g.outs[i], "edge"), "b"));
      parts.push(...this.chips(pane, "Its channel was written by", of(g.ins[i], "carry"), "a"));
      parts.push(...this.chips(pane, "Its channel is read by", of(g.outs[i], "carry"), "b"));
      parts.push(...this.chips(pane, "Steers where these values are taken from", of(g.outs[i], "attend"), "b"));
      parts.push(...this.chips(pane, "Where it is taken from is steered by", of(g.ins[i], "attend"), "a"));
      this.panel.replaceChildren(...parts);
      this.panel.scrollTop = 0;
    }

    go(pane, i, back) {
      pane.select(i, true);
      if (back) this.panel.querySelector("h3").focus({ preventScroll: true });
    }

    row(pane, g, i, value, most) {
      const n = g.nodes[i];
      return make("li", {}, make("button", { type: "button", title: n.id, onclick: (e) => this.go(pane, i, e.detail === 0) },
        make("span", {}, n.label !== undefined ? visible(n.label) : n.id), bar(value / most), make("span", { class: "w" }, num(value))));
    }

    edges(pane, title, lines, end) {
      if (!lines.length) return [];
      const sorted = [...lines].sort((p, q) => Math.abs(q.w) - Math.abs(p.w));
      const most = Math.abs(sorted[0].w) || 1;
      const list = make("ul", { class: "nodes-list" });
      const fill = (n) => list.replaceChildren(...sorted.slice(0, n).map((l) => this.row(pane, pane.g, l[end], l.w, most)));
      fill(8);
      const out = [make("h4", {}, title, make("small", {}, count(lines.length, "edge"))), list];
      if (lines.length > 8) out.push(make("button", { type: "button", class: "more", onclick: (e) => { fill(Infinity); e.currentTarget.remove(); } }, `all ${lines.length}`));
      return out;
    }

    chips(pane, title, lines, end) {
      if (!lines.length) return [];
      return [make("h4", {}, title), make("div", { class: "chips" }, ...lines.map((l) => {
        const n = pane.g.nodes[l[end]];
        return make("button", { type: "button", onclick: (e) => this.go(pane, l[end], e.detail === 0) }, n.id);
      }))];
    }

    contexts(g, n) {
      const all = [...n.top, ...n.bottom].flatMap((c) => c.acts || [c.act]).concat((n.task || []).flatMap((c) => c.acts || [c.act]));
      const most = Math.max(1e-9, ...all.map(Math.abs));
      const names = [["top", "Highest"], ["bottom", "Lowest"], ["task", "On the task"]];
      const body = make("div", { role: "tabpanel" });
      const tabs = make("div", { class: "seg", role: "tablist", "aria-label": "Contexts" });
      const choose = (key, focus) => {
        this.tab = key;
        for (const b of tabs.children) {
          const on = b.dataset.key === key;
          b.setAttribute("aria-selected", on);
          b.tabIndex = on ? 0 : -1;
          if (on && focus) b.focus();
        }
        body.replaceChildren(...(g.inputs === "vectors" ? images(g, n, key) : g.inputs === "features" ? named(g, n, key) : texts(g, n, key, most)));
      };
      for (const [key, word] of names) tabs.append(make("button", { type: "button", role: "tab", "data-key": key, onclick: () => choose(key) }, word));
      arrows(tabs, (b) => choose(b.dataset.key, true));
      choose(this.tab);
      const ramp = make("div", { class: "ramp", role: "img", "aria-label": `Colour of a token: its activation, from minus to plus ${num(most)}` }, make("span", {}, "−" + num(most)), make("i", {}), make("span", {}, "+" + num(most)));
      return [tabs, ...(g.inputs === "tokens" ? [ramp] : []), body];
    }
  }

  function texts(g, n, key, most) {
    if (key !== "task") {
      if (!n[key].length) return [make("p", { class: "empty" }, "No text was read.")];
      return n[key].map((c) => make("div", { class: "context" }, tokens(c.tokens, c.acts, c.at, most)));
    }
    return n.task.map((t) => {
      const p = g.prompts[t.prompt];
      return make("div", { class: "context" },
        make("p", {}, make("span", {}, "answer ", make("b", {}, make("code", {}, visible(p.answer))), " not ", make("code", {}, p.wrong.map(visible).join(" "))), make("span", {}, num(t.acts[t.acts.length - 1]), " at the end")),
        tokens(p.tokens, t.acts, p.tokens.length - 1, most));
    });
  }

  function tokens(words, acts, at, most) {
    const box = make("div", {});
    words.forEach((word, k) => {
      const span = make("span", { class: k === at ? "t at" : "t", title: `${visible(word)}  ${num(acts[k])}` });
      word.split("\n").forEach((piece, j) => {
        if (j) span.append(make("span", { class: "nl" }, "↵"), "\n");
        span.append(piece);
      });
      const share = Math.min(1, Math.abs(acts[k]) / most);
      if (share > 0.02) span.style.backgroundColor = `rgba(${acts[k] < 0 ? ink.minusRgb : ink.plusRgb}, ${(0.75 * share).toFixed(3)})`;
      box.append(span);
    });
    return box;
  }

  function images(g, n, key) {
    const list = key === "task" ? n.task.map((t) => ({ ...g.prompts[t.prompt], act: t.act })) : n[key];
    return [make("div", { class: "images" }, ...list.map((c) => make("figure", {}, picture(c.pixels), make("figcaption", {}, make("b", {}, c.label), num(c.act)))))];
  }

  function named(g, n, key) {
    const list = key === "task" ? n.task.map((t) => ({ ...g.prompts[t.prompt], act: t.act })) : n[key];
    return list.map((c) => make("div", { class: "context" },
      make("p", {}, make("span", {}, make("b", {}, c.label)), num(c.act)),
      make("div", {}, c.values.map(([name, v]) => v === 1 && name.includes("=") ? name : `${name} ${num(v)}`).join("  ·  "))));
  }

  function picture(pixels) {
    const side = Math.round(Math.sqrt(pixels.length)), square = side * side === pixels.length;
    const w = square ? side : pixels.length, h = square ? side : 1;
    const canvas = make("canvas", { width: w, height: h, role: "img", "aria-label": "input" });
    const c = canvas.getContext("2d"), image = c.createImageData(w, h);
    const low = Math.min(...pixels), high = Math.max(...pixels);
    pixels.forEach((v, k) => {
      const shade = Math.round(255 * (1 - (v - low) / (high - low || 1)));
      image.data.set([shade, shade, shade, 255], 4 * k);
    });
    c.putImageData(image, 0, 0);
    return canvas;
  }

  function bar(share) {
    const w = Math.max(0.6, 36 * Math.min(1, Math.abs(share)));
    return draw("svg", { viewBox: "0 0 74 8", "aria-hidden": "true" },
      draw("line", { x1: 37, x2: 37, y1: 0, y2: 8 }),
      draw("rect", { class: share < 0 ? "minus" : "plus", x: share < 0 ? 37 - w : 37, y: 1.5, width: w, height: 5, rx: 1 }));
  }

  function legend(drawings) {
    const has = (...kinds) => drawings.some((g) => g.nodes.some((n) => kinds.includes(n.kind) && n.text === undefined));
    const item = (word, small, ...shapes) => make("span", {}, draw("svg", { viewBox: small ? "0 0 13 12" : "0 0 26 12", class: small ? "small" : "", "aria-hidden": "true" }, ...shapes), word);
    const line = (cls) => draw("line", { class: cls, x1: 0, x2: 26, y1: 6, y2: 6 });
    const shape = (word, tag, props) => item(word, true, draw(tag, { class: "shape", ...props }));
    const ring = { cx: 6.5, cy: 6, r: 4 };
    return [
      item("positive weight", false, line("plus")), item("negative weight", false, line("minus")),
      drawings.some((g) => g.residual.length) ? item("carried by the residual stream", false, line("carry")) : null,
      has("read") ? shape("read", "circle", ring) : null,
      has("write") ? shape("write", "path", { d: "M6.5 1L11.5 6L6.5 11L1.5 6Z" }) : null,
      has("neuron") ? shape("neuron", "circle", { ...ring, class: "shape solid" }) : null,
      has("query", "key", "value") ? shape("query, key, value", "rect", { class: "shape solid", x: 3, y: 2.5, width: 7, height: 7 }) : null,
      has("embed") ? shape("embedding", "path", { d: "M6.5 1.5L11 10H2Z" }) : null,
      has("input") ? shape("input", "circle", ring) : null,
      make("span", {}, "A larger node: a larger change of loss without it."),
    ].filter((x) => x);
  }

  function arrows(list, act) {
    list.addEventListener("keydown", (e) => {
      const all = [...list.children], k = all.indexOf(document.activeElement);
      const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: all.length - 1 }[e.key];
      if (to === undefined || k < 0) return;
      e.preventDefault();
      act(all[(to + all.length) % all.length]);
    });
  }

  // -- the page -------------------------------------------------------------------------------------------------------

  const stages = new Map();
  function openTask(task, focus) {
    for (const t of data.tasks) {
      const on = t === task, tab = document.getElementById("tab-" + t.id);
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      if (on && focus) tab.focus({ preventScroll: true });
      document.getElementById(t.id).hidden = !on;
    }
    const element = document.querySelector(`[data-stage="${task.id}"]`);
    if (stages.has(task.id)) return;
    if (task.panes.length) stages.set(task.id, new Stage(element, task));
    else element.replaceChildren(make("p", { class: "empty" }, "No circuit of this task is here."));
  }

  function fromAddress(scroll) {
    let name = "";
    try { name = decodeURIComponent(location.hash.slice(1)); } catch (e) { return false; }
    const task = data.tasks.find((t) => t.name === name);
    if (!task) return false;
    openTask(task);
    if (scroll) document.querySelector(".circuits").scrollIntoView();
    return true;
  }

  readColours();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    for (const s of stages.values()) for (const p of s.panes) p.render();
  });
  const tabs = document.querySelector(".tabs");
  if (tabs) {
    data.tasks.forEach((t) => document.getElementById("tab-" + t.id).addEventListener("click", () => {
      openTask(t);
      history.replaceState(null, "", "#" + encodeURIComponent(t.name));
    }));
    arrows(tabs, (b) => { b.click(); b.focus(); });
    if (!fromAddress(true)) openTask(data.tasks.find((t) => !document.getElementById(t.id).hidden) || data.tasks[0]);
    addEventListener("hashchange", () => fromAddress(true));
    document.querySelectorAll(".tasks a").forEach((a) => a.addEventListener("click", () => setTimeout(() => fromAddress(true))));
  }
})();
