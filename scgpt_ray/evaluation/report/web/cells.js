// Connects Bokeh's plots of cells with the page: the column that colours them, its legend, and what a finger does.

const REACH = matchMedia("(pointer: coarse)").matches ? 20 : 8; // pixels around a cell in which it is pointed at

const figure = document.querySelector("figure.cells");
const { plots, scales } = JSON.parse(figure.querySelector("script").textContent);
figure.classList.add("is-live");
await Bokeh.embed.embed_item(plots, figure.querySelector(".plots"));
const page = Bokeh.documents.at(-1);
const panels = page.roots()[0].children;
const cells = page.get_model_by_name("cells");
const select = figure.querySelector("select");
const legends = figure.querySelectorAll(".legend");

/** Colour the cells by the chosen column, and show its legend. */
function colour() {
  page.get_model_by_name("colours").setv(scales[select.value]);
  cells.data.colour = cells.data[`c${select.value}`];
  cells.change.emit();
  legends.forEach((legend, place) => (legend.hidden = place !== Number(select.value)));
  single(null);
}

/** Single out the cells of a button's label, null for all: Bokeh fades those that are not selected. */
function single(chosen) {
  const buttons = [...legends[select.value].querySelectorAll("button")];
  for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
  const label = buttons.indexOf(chosen);
  cells.selected.indices = [...cells.data.colour.keys()].filter((cell) => cells.data.colour[cell] === label);
}

/** Titles in the colour of the page's text. */
function ink() {
  for (const panel of panels) panel.title.text_color = getComputedStyle(figure).color;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", ink);
ink();
select.addEventListener("change", colour);
colour();
for (const legend of legends) {
  legend.addEventListener("click", (event) => single(event.target.closest("button[aria-pressed=false]")));
}

for (const panel of panels) {
  const { x_range: x, y_range: y, toolbar, renderers } = panel;
  const [left, right, bottom, top] = panel.tags;
  const { el } = Bokeh.index.find_one(panel);
  const pan = toolbar.tools.find((tool) => tool.type === "PanTool");
  const { glyph, selection_glyph, nonselection_glyph } = renderers[0];
  const isWhole = () => x.start <= left && x.end >= right && y.start <= bottom && y.end >= top;

  /** Dots grow a little with the zoom. A finger moves what is zoomed, and else scrolls the page. */
  const fit = () => {
    const room = el.clientWidth / Math.sqrt(cells.data.alpha.length);
    const zoom = Math.max(1, (right - left) / (x.end - x.start));
    const size = Math.min(10, Math.max(2.8, 0.3 * room)) * zoom ** 0.3;
    for (const dots of [glyph, selection_glyph, nonselection_glyph]) dots.setv({ size, hit_dilation: (2 * REACH) / size });
    pan.active = REACH < 20 || !isWhole();
  };
  fit();
  for (const range of [x, y]) range.change.connect(fit);
  panel.on_event("reset", () => single(null));
  el.addEventListener("dblclick", () => Bokeh.index.find_one(panel).reset());
  // Bokeh shows values under a moving pointer only, and a finger that taps does not move.
  el.addEventListener("click", (event) => {
    const move = new PointerEvent("pointermove", { isPrimary: true });
    for (const place of ["pageX", "pageY"]) Object.defineProperty(move, place, { value: event[place] });
    event.composedPath()[0].dispatchEvent(move);
  });
  const scrolls = (event) => event.deltaY > 0 && isWhole() && event.stopPropagation(); // the page, where all is seen
  el.addEventListener("wheel", scrolls, { capture: true });
}
