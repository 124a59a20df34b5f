// One set of coordinates of cells on a canvas of its own: drawing, zooming, moving, pointing.

const MARGIN = 14; // CSS pixels around the dots
const FARTHEST = 80; // largest zoom
const STEP = 1.5; // zoom of a button or key
const NUDGE = 60; // CSS pixels that an arrow key moves
const REACH = { mouse: 10, pen: 12, touch: 20 }; // CSS pixels around a cell in which it is pointed at
const TAP = 8; // CSS pixels that a finger may slip

/** One set of coordinates on a canvas of its own, with its own zoom. */
class Panel {
  constructor(view, packed) {
    this.view = view;
    this.places = decode(packed.places, Uint16Array);
    this.extent = packed.extent;
    this.canvas = make("canvas", {
      tabindex: "0",
      role: "application",
      "aria-label": `${packed.name}: ${view.n.toLocaleString("en-US")} cells. Arrow keys move, + and - zoom, 0 resets.`,
    });
    this.context = this.canvas.getContext("2d");
    const name = view.isAlone ? [] : [make("h3", {}, packed.name)];
    this.element = make("div", { class: "panel" }, ...name, this.canvas);
    this.fingers = new Map();
    this.sprites = new Map();
    this.home();
    this.listen();
  }

  home() {
    [this.zoom, this.left, this.top] = [1, 0, 0];
  }

  /** Draw, and again whenever the canvas gets another size. */
  watch() {
    this.resize();
    new ResizeObserver(() => this.resize()).observe(this.canvas);
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    this.ratio = window.devicePixelRatio || 1;
    [this.width, this.height] = [clientWidth, clientHeight];
    this.canvas.width = Math.round(clientWidth * this.ratio);
    this.canvas.height = Math.round(clientHeight * this.ratio);
    const [across, down] = this.extent;
    this.unit = Math.min((clientWidth - 2 * MARGIN) / across, (clientHeight - 2 * MARGIN) / down);
    this.startX = (clientWidth - across * this.unit) / 2;
    this.startY = (clientHeight - down * this.unit) / 2;
    this.place(this.left, this.top);
    this.draw();
  }

  /** Place of a cell on the canvas, in CSS pixels. */
  x = (cell) => (this.startX + this.places[2 * cell] * this.unit) * this.zoom + this.left;
  y = (cell) => (this.startY + this.places[2 * cell + 1] * this.unit) * this.zoom + this.top;

  get radius() {
    const room = Math.sqrt((this.width * this.height) / this.view.n);
    return Math.min(5, Math.max(1.4, room * 0.15)) * this.zoom ** 0.3;
  }

  /** A dot, drawn once for each colour. */
  sprite(colour, radius) {
    const key = `${colour} ${radius}`;
    if (!this.sprites.has(key)) {
      const dot = document.createElement("canvas");
      dot.width = dot.height = Math.ceil(2 * (radius + 1) * this.ratio);
      const context = dot.getContext("2d");
      context.fillStyle = colour;
      context.beginPath();
      context.arc(dot.width / 2, dot.width / 2, radius * this.ratio, 0, 2 * Math.PI);
      context.fill();
      this.sprites.set(key, dot);
    }
    return this.sprites.get(key);
  }

  draw() {
    if (!this.width) return;
    const { view, context } = this;
    this.sprites.clear();
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const radius = this.radius;
    const isChosen = (cell) => view.label === null || view.column.has(cell, view.label);
    // Cells behind first, then those not singled out, then the rest.
    context.globalAlpha = view.label === null ? 0.38 : 0.12;
    this.dots(view.nFront, view.n, radius * 0.8, (cell) => view.label === null || !isChosen(cell));
    context.globalAlpha = 0.12;
    if (view.label !== null) this.dots(0, view.nFront, radius, (cell) => !isChosen(cell));
    context.globalAlpha = 0.55;
    if (view.label !== null) this.dots(view.nFront, view.n, radius * 0.8, isChosen);
    context.globalAlpha = 1;
    this.dots(0, view.nFront, radius, isChosen);
    if (view.cell !== null) this.ring(view.cell, radius + 3);
  }

  dots(first, last, radius, isDrawn) {
    const { view, context, ratio, canvas } = this;
    for (let cell = first; cell < last; cell++) {
      const [x, y] = [this.x(cell) * ratio, this.y(cell) * ratio];
      if (x < -20 || y < -20 || x > canvas.width + 20 || y > canvas.height + 20 || !isDrawn(cell)) continue;
      const dot = this.sprite(view.column.colour(cell, view.look), radius);
      context.drawImage(dot, Math.round(x - dot.width / 2), Math.round(y - dot.width / 2)); // whole pixels stay sharp
    }
  }

  ring(cell, radius) {
    const { context, ratio } = this;
    context.strokeStyle = this.view.look.ink;
    context.lineWidth = 1.5 * ratio;
    context.beginPath();
    context.arc(this.x(cell) * ratio, this.y(cell) * ratio, radius * ratio, 0, 2 * Math.PI);
    context.stroke();
  }

  /** Zoom so that what is at a point stays there. */
  zoomAt(x, y, factor) {
    const zoom = Math.min(FARTHEST, Math.max(1, this.zoom * factor));
    this.left = x - ((x - this.left) * zoom) / this.zoom;
    this.top = y - ((y - this.top) * zoom) / this.zoom;
    this.zoom = zoom;
    this.move(0, 0);
  }

  /** Where the zoomed canvas begins, so that no place beside it is seen. */
  place(left, top) {
    this.left = Math.min(0, Math.max(this.width * (1 - this.zoom), left));
    this.top = Math.min(0, Math.max(this.height * (1 - this.zoom), top));
  }

  move(right, down) {
    this.place(this.left + right, this.top + down);
    this.canvas.classList.toggle("near", this.zoom > 1);
    this.view.point(null);
    this.view.redraw();
  }

  /** The cell nearest to a point, those in front before those behind; null where none is in reach. */
  nearest(x, y, reach) {
    for (const [first, last] of [[0, this.view.nFront], [this.view.nFront, this.view.n]]) {
      let [found, closest] = [null, reach ** 2];
      for (let cell = first; cell < last; cell++) {
        const distance = (this.x(cell) - x) ** 2 + (this.y(cell) - y) ** 2;
        if (distance < closest) [found, closest] = [cell, distance];
      }
      if (found !== null) return found;
    }
    return null;
  }

  where(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  point(event) {
    const at = this.where(event);
    this.view.point(this.nearest(at.x, at.y, REACH[event.pointerType] ?? REACH.mouse), event);
  }

  reset() {
    this.home();
    this.move(0, 0);
  }

  listen() {
    const on = (name, act, options) => this.canvas.addEventListener(name, act, options);
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("dblclick", () => this.reset());
    on("keydown", (event) => this.key(event));
    on("pointerdown", (event) => this.press(event));
    on("pointermove", (event) => (this.fingers.has(event.pointerId) ? this.drag(event) : this.point(event)));
    on("pointerup", (event) => this.release(event));
    on("pointercancel", (event) => this.fingers.delete(event.pointerId));
    on("pointerleave", (event) => event.pointerType !== "touch" && this.view.point(null));
    // Two fingers are for this canvas; one scrolls the page as long as nothing is zoomed (see `touch-action`).
    on("touchstart", (event) => event.touches.length > 1 && event.preventDefault(), { passive: false });
  }

  wheel(event) {
    if (event.deltaY > 0 && this.zoom === 1) return; // let the page scroll on
    event.preventDefault();
    const at = this.where(event);
    const pixels = event.deltaY * (event.deltaMode === 1 ? 18 : 1);
    this.zoomAt(at.x, at.y, Math.exp(-Math.max(-240, Math.min(240, pixels)) / 320));
  }

  key(event) {
    const [middleX, middleY] = [this.width / 2, this.height / 2];
    const acts = {
      ArrowLeft: () => this.move(NUDGE, 0),
      ArrowRight: () => this.move(-NUDGE, 0),
      ArrowUp: () => this.move(0, NUDGE),
      ArrowDown: () => this.move(0, -NUDGE),
      "+": () => this.zoomAt(middleX, middleY, STEP),
      "=": () => this.zoomAt(middleX, middleY, STEP),
      "-": () => this.zoomAt(middleX, middleY, 1 / STEP),
      0: () => this.reset(),
    };
    if (!(event.key in acts) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, this.where(event));
    this.slipped = this.fingers.size > 1 ? Infinity : 0;
  }

  drag(event) {
    const before = [...this.fingers.values()];
    const [was, is] = [this.fingers.get(event.pointerId), this.where(event)];
    this.fingers.set(event.pointerId, is);
    this.slipped += Math.hypot(is.x - was.x, is.y - was.y);
    if (before.length === 2) {
      const after = [...this.fingers.values()];
      const apart = ([one, other]) => Math.hypot(one.x - other.x, one.y - other.y);
      const middle = { x: (after[0].x + after[1].x) / 2, y: (after[0].y + after[1].y) / 2 };
      this.zoomAt(middle.x, middle.y, apart(after) / Math.max(1, apart(before)));
      this.move((is.x - was.x) / 2, (is.y - was.y) / 2);
    } else if (event.pointerType === "mouse" || this.slipped > TAP) {
      this.move(is.x - was.x, is.y - was.y);
    }
  }

  release(event) {
    this.fingers.delete(event.pointerId);
    if (this.slipped <= TAP) this.point(event);
  }
}
