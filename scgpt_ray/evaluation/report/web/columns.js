// Columns of a scatter of cells: what a cell is told to be, and the colour it gets.
// The files columns.js, panel.js and view.js make one module, in this order.

const NOTHING = "no value";

/** An element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Base64 of little-endian numbers as a typed array. */
function decode(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

const number = (value) =>
  Number.isInteger(value)
    ? value.toLocaleString("en-US")
    : value.toLocaleString("en-US", { maximumSignificantDigits: 4 });

/** Labels: each has a name, a colour (null for grey) and the cells it is counted by. */
class Labels {
  constructor(packed) {
    Object.assign(this, packed);
    this.codes = decode(packed.codes, Uint16Array);
  }
  text = (cell) => this.names[this.codes[cell]];
  colour = (cell, look) => this.colours[this.codes[cell]] ?? look.grey;
  has = (cell, label) => this.codes[cell] === label;
}

/** Numbers: coloured by a scale between two values, beyond which colours do not change. */
class Numbers {
  constructor(packed) {
    Object.assign(this, packed);
    this.values = decode(packed.values, Float32Array);
  }
  text = (cell) => (Number.isNaN(this.values[cell]) ? NOTHING : number(+this.values[cell].toPrecision(6)));
  colour(cell, look) {
    const share = (this.values[cell] - this.low) / (this.high - this.low || 1);
    if (Number.isNaN(share)) return look.grey;
    return look.scale[Math.round(Math.min(1, Math.max(0, share)) * (look.scale.length - 1))];
  }
  has = () => true;
}

/** Texts that are only told, such as names of cells. */
class Texts {
  constructor(packed) {
    Object.assign(this, packed);
  }
  text = (cell) => this.texts[cell] ?? NOTHING;
}

const KINDS = { labels: Labels, numbers: Numbers, texts: Texts };
