// Panels of the same cells side by side, coloured by one column at a time, with a legend and what a cell is.

/** The panels, what they are coloured by, and the legend. */
class View {
  constructor(figure) {
    const packed = JSON.parse(figure.querySelector("script").textContent);
    this.figure = figure;
    [this.n, this.nFront] = [packed.n, packed.n_front];
    this.columns = packed.columns.map((column) => new KINDS[column.kind](column));
    this.column = this.columns[0];
    this.scale = packed.scale;
    this.label = this.cell = null;
    this.isAlone = packed.panels.length === 1;
    this.panels = packed.panels.map((panel) => new Panel(this, panel));
    this.build();
    this.read();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (this.read(), this.redraw()));
    this.explain();
    for (const panel of this.panels) panel.watch();
  }

  /** Colours that follow the page. */
  read() {
    const style = getComputedStyle(this.figure);
    const colour = (name) => style.getPropertyValue(name).trim();
    this.look = { scale: this.scale, grey: colour("--grey"), ink: colour("--ink") };
  }

  build() {
    this.select = make("select");
    this.columns.forEach((column, place) => {
      if (column.kind !== "texts") this.select.append(make("option", { value: place }, column.name));
    });
    this.select.addEventListener("change", () => this.choose(this.columns[this.select.value]));
    const button = (text, name, act) => {
      const made = make("button", { type: "button", "aria-label": name, title: name }, text);
      made.addEventListener("click", () => this.panels.forEach(act));
      return made;
    };
    const zoom = (factor) => (panel) => panel.zoomAt(panel.width / 2, panel.height / 2, factor);
    const controls = make(
      "div",
      { class: "controls" },
      make("label", {}, make("span", {}, "Colour by"), this.select),
      make(
        "div",
        { class: "buttons", role: "group", "aria-label": "Zoom" },
        button("−", "Zoom out", zoom(1 / STEP)),
        button("+", "Zoom in", zoom(STEP)),
        button("Reset", "Reset the zoom", (panel) => panel.reset()),
      ),
    );
    this.legend = make("div", { class: "legend", role: "group", "aria-label": "Legend" });
    this.legend.addEventListener("keydown", (event) => event.key === "Escape" && this.single(null));
    this.told = make("div", { class: "told", role: "status", hidden: "" });
    const panels = make("div", { class: this.isAlone ? "panels alone" : "panels" });
    panels.append(...this.panels.map((panel) => panel.element));
    const stage = make("div", { class: this.isAlone ? "stage" : "stage several" }, panels, make("div", { class: "side" }, this.legend));
    const hint = "Scroll or pinch to zoom, drag to move, double-click to reset. Click a label to single it out.";
    this.figure.prepend(make("div", { class: "live" }, controls, stage, make("p", { class: "hint" }, hint), this.told));
    this.figure.classList.add("is-live");
  }

  choose(column) {
    this.column = column;
    this.label = null;
    this.explain();
    this.redraw();
  }

  single(label) {
    this.label = label === this.label ? null : label;
    for (const entry of this.legend.querySelectorAll("button")) {
      entry.setAttribute("aria-pressed", String(Number(entry.value) === this.label));
    }
    this.redraw();
  }

  /** Fill the legend. */
  explain() {
    const entries = this.column.kind === "labels" ? this.entries() : this.bar();
    this.legend.replaceChildren(...entries);
    this.legend.scrollTop = 0;
  }

  entries() {
    const { names, colours, counts } = this.column;
    return names.map((name, label) => {
      const dot = make("i", {});
      dot.style.background = colours[label] ?? "var(--grey)";
      const told = [dot, make("span", {}, name), make("b", {}, number(counts[label]))];
      const entry = make("button", { type: "button", value: label, "aria-pressed": "false" }, ...told);
      entry.addEventListener("click", () => this.single(label));
      return entry;
    });
  }

  bar() {
    const { low, high, below, above, missing } = this.column;
    const strip = make("div", { class: "strip" });
    strip.style.background = `linear-gradient(to right, ${this.scale.join(", ")})`;
    const ends = make("div", { class: "ends" });
    ends.append(make("span", {}, (below ? "≤ " : "") + number(low)), make("span", {}, (above ? "≥ " : "") + number(high)));
    const grey = make("p", { class: "missing" }, make("i", {}), `${NOTHING}: ${number(missing)}`);
    return missing ? [strip, ends, grey] : [strip, ends];
  }

  /** Tell what a cell is beside the pointer; null for none. */
  point(cell, event = null) {
    if (cell !== this.cell) {
      this.cell = cell;
      this.redraw();
    }
    this.told.hidden = cell === null;
    if (cell === null) return;
    const rows = [this.column, ...this.columns.filter((column) => column !== this.column)];
    this.told.replaceChildren(
      ...rows.flatMap((column) => [make("span", {}, column.name), make("b", {}, column.text(cell))]),
    );
    const box = this.told.parentElement.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const { offsetWidth: width, offsetHeight: height } = this.told;
    const left = x + 16 + width < box.width ? x + 16 : x - 16 - width;
    this.told.style.left = `${Math.max(0, Math.min(left, box.width - width))}px`;
    this.told.style.top = `${y + 16 + height < box.height ? y + 16 : Math.max(0, y - 16 - height)}px`;
  }

  redraw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      for (const panel of this.panels) panel.draw();
    });
  }
}

for (const figure of document.querySelectorAll("figure.scatter")) new View(figure);
