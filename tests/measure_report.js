// Uses a report as a person would and returns what was found; added to a copy of the report by test_reports_browser.py.
"use strict";

/** Until what was asked for is drawn: frames of the copy are timers, see CATCH. */
const rest = () => new Promise((done) => setTimeout(done, 20));

/** Lines of text that can be seen: their boxes, cut to what scrolls, and the element that says them. */
function lines() {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility() || element.closest("script, option")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) {
      const seen = { node, element, left: box.left, right: box.right, top: box.top, bottom: box.bottom, isCut: false };
      for (let outer = element; outer !== document.body; outer = outer.parentElement) {
        const style = getComputedStyle(outer);
        if (style.overflowX === "visible") continue;
        const frame = outer.getBoundingClientRect();
        const scrolls = ["auto", "scroll"].includes(style.overflowX) || ["auto", "scroll"].includes(style.overflowY);
        if (!scrolls && (box.right > frame.right + 1 || box.bottom > frame.bottom + 1)) seen.isCut = true;
        seen.left = Math.max(seen.left, frame.left);
        seen.right = Math.min(seen.right, frame.right);
        seen.top = Math.max(seen.top, frame.top);
        seen.bottom = Math.min(seen.bottom, frame.bottom);
      }
      if (box.right > element.getBoundingClientRect().right + 1) seen.isCut = true; // runs out of its own box
      if (seen.left < -1 || seen.right > innerWidth + 1) seen.isCut = true;
      if (seen.right - seen.left > 1 && seen.bottom - seen.top > 1) found.push(seen);
    }
  }
  return found;
}

const said = (line) => line.node.textContent.trim().slice(0, 60);

function overlaps(seen) {
  const found = [];
  for (const [place, one] of seen.entries()) {
    for (const other of seen.slice(place + 1)) {
      const across = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const down = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (one.node !== other.node && across > 1 && down > 3) found.push(`${said(one)} | ${said(other)}`);
    }
  }
  return found;
}

const channels = (colour) => colour.match(/[\d.]+/g).map(Number);

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function background(element) {
  for (let outer = element; outer; outer = outer.parentElement) {
    const [r, g, b, alpha = 1] = channels(getComputedStyle(outer).backgroundColor);
    if (alpha > 0.5) return [r, g, b];
  }
  return [255, 255, 255];
}

/** Texts with less than 4.5 to 1 between their colour and what is behind. */
function faint(seen) {
  return seen.flatMap((line) => {
    const behind = background(line.element);
    const lights = [luminance(channels(getComputedStyle(line.element).color).slice(0, 3)), luminance(behind)];
    const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    return ratio < 4.5 ? [`${said(line)}: ${ratio.toFixed(2)}`] : [];
  });
}

const canvas = document.querySelector("canvas");
const pixels = () => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
const picture = () => canvas.toDataURL();
const key = (data, at) => `rgb(${data[at]}, ${data[at + 1]}, ${data[at + 2]})`;
const entries = () => [...document.querySelectorAll(".legend button")];
const swatch = (entry) => getComputedStyle(entry.querySelector("i")).backgroundColor;

/** Colours of the legend -> opaque pixels of the canvas that have them. */
function drawn() {
  const counts = Object.fromEntries(entries().map((entry) => [swatch(entry), 0]));
  const data = pixels();
  for (let at = 0; at < data.length; at += 4) if (data[at + 3] === 255 && key(data, at) in counts) counts[key(data, at)]++;
  return counts;
}

/** A pixel with one colour of the legend and no other colour near it, in CSS pixels of the window. */
function lonely() {
  const [data, width, reach] = [pixels(), canvas.width, 6];
  const colours = new Set(entries().map(swatch));
  for (let y = reach; y < canvas.height - reach; y++) {
    for (let x = reach; x < width - reach; x++) {
      const colour = key(data, 4 * (y * width + x));
      if (data[4 * (y * width + x) + 3] < 255 || !colours.has(colour)) continue;
      let isAlone = true;
      for (let down = -reach; down <= reach && isAlone; down++) {
        for (let right = -reach; right <= reach && isAlone; right++) {
          const at = 4 * ((y + down) * width + x + right);
          isAlone = data[at + 3] < 255 || key(data, at) === colour;
        }
      }
      const box = canvas.getBoundingClientRect();
      const ratio = width / canvas.clientWidth;
      if (isAlone) return { colour, clientX: box.left + 1 + x / ratio, clientY: box.top + 1 + y / ratio };
    }
  }
  return null;
}

const point = (name, at, more = {}) =>
  canvas.dispatchEvent(new PointerEvent(name, { pointerType: "mouse", pointerId: 1, bubbles: true, ...at, ...more }));

async function used() {
  canvas.setPointerCapture = () => {}; // these fingers are not there
  const found = { colours: Object.values(drawn()).filter((count) => count > 3).length };
  const start = picture();
  const told = document.querySelector(".told");
  const place = lonely();
  const hover = async () => {
    point("pointermove", place);
    await rest();
    return told.hidden ? null : told.querySelector("b").textContent;
  };
  const name = await hover();
  const entry = entries().find((one) => one.querySelector("span").textContent === name);
  found.hover = { name, isItsColour: entry !== undefined && swatch(entry) === place.colour, rows: told.children.length / 2 };
  const box = told.getBoundingClientRect();
  found.hover.isInside = box.left >= 0 && box.right <= innerWidth && box.height > 20;
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -200, cancelable: true, ...place }));
  await rest();
  found.wheel = { changed: picture() !== start, stays: (await hover()) === name };
  point("pointerdown", place);
  point("pointermove", { clientX: place.clientX + 30, clientY: place.clientY + 20 });
  point("pointerup", place);
  await rest();
  found.dragged = picture();
  canvas.dispatchEvent(new MouseEvent("dblclick"));
  point("pointerleave", place);
  await rest();
  found.reset = picture() === start;
  found.dragged = found.dragged !== start;
  const fingers = [{ pointerId: 7, pointerType: "touch" }, { pointerId: 8, pointerType: "touch" }];
  const moved = (right) => ({ clientX: place.clientX + right, clientY: place.clientY });
  fingers.forEach((finger, number) => point("pointerdown", moved(20 * number), finger));
  point("pointermove", moved(80), fingers[1]);
  fingers.forEach((finger) => point("pointerup", place, finger));
  await rest();
  found.pinch = canvas.classList.contains("near") && picture() !== start;
  canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "0" }));
  await rest();
  found.keyReset = picture() === start;
  const last = entries().at(-1);
  last.click();
  await rest();
  const left = Object.entries(drawn()).filter(([, count]) => count > 0).map(([colour]) => colour);
  found.single = { pressed: last.getAttribute("aria-pressed"), onlyItsColour: left.join() === swatch(last) };
  last.click();
  await rest();
  found.unsingled = picture() === start;
  const select = document.querySelector(".scatter select");
  select.value = [...select.options].at(-1).value;
  select.dispatchEvent(new Event("change"));
  await rest();
  found.recoloured = { changed: picture() !== start, bar: document.querySelector(".strip") !== null };
  found.options = [...select.options].map((option) => option.textContent);
  return found;
}

async function measured() {
  await rest();
  const seen = lines();
  const nameless = [...document.querySelectorAll("button, select, canvas, svg[role=img], img")].filter(
    (element) => !(element.ariaLabel || element.textContent.trim() || element.alt || element.labels?.length),
  );
  const found = {
    width: innerWidth,
    isDark: matchMedia("(prefers-color-scheme: dark)").matches,
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    cut: seen.filter((line) => line.isCut).map(said),
    overlaps: overlaps(seen),
    faint: faint(seen),
    nameless: nameless.length,
    still: [...document.querySelectorAll(".still img")].filter((image) => image.checkVisibility()).length,
    legend: entries().map((entry) => entry.querySelector("span").textContent),
    counts: entries().map((entry) => Number(entry.querySelector("b").textContent.replaceAll(",", ""))),
    canvases: document.querySelectorAll("canvas").length,
  };
  found.used = await used();
  found.errors = window.errors;
  return found;
}

measured().then(
  (found) => (parent.found[window.name] = found),
  (error) => (parent.found[window.name] = { errors: [...window.errors, String(error.stack)] }),
);
