// A label map that is painted on: brush, ellipse, layer edge; undo and redo. Knows nothing of the page.

const MOST_STEPS = 100;

export class Painter {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.mask = new Uint8Array(width * height);
    this.past = [];
    this.future = [];
  }

  // Call before a change that can be undone.
  begin() {
    this.past.push(this.mask.slice());
    if (this.past.length > MOST_STEPS) this.past.shift();
    this.future = [];
  }

  replace(mask) {
    this.begin();
    this.mask.set(mask);
  }

  undo() {
    if (!this.past.length) return false;
    this.future.push(this.mask);
    this.mask = this.past.pop();
    return true;
  }

  redo() {
    if (!this.future.length) return false;
    this.past.push(this.mask);
    this.mask = this.future.pop();
    return true;
  }

  at(x, y) {
    return this.mask[this.row(y) * this.width + this.column(x)];
  }

  column(x) {
    return Math.min(this.width - 1, Math.max(0, Math.floor(x)));
  }

  row(y) {
    return Math.min(this.height - 1, Math.max(0, Math.floor(y)));
  }

  // Every pixel whose centre is within `radius` of the line between two points.
  line(from, to, radius, value) {
    const [left, right] = [Math.min(from.x, to.x) - radius, Math.max(from.x, to.x) + radius];
    const [top, bottom] = [Math.min(from.y, to.y) - radius, Math.max(from.y, to.y) + radius];
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length = dx * dx + dy * dy;
    for (let y = this.row(top); y <= this.row(bottom); y++) {
      for (let x = this.column(left); x <= this.column(right); x++) {
        const [ax, ay] = [x + 0.5 - from.x, y + 0.5 - from.y];
        const part = length ? Math.min(1, Math.max(0, (ax * dx + ay * dy) / length)) : 0;
        if (Math.hypot(ax - part * dx, ay - part * dy) <= radius) this.mask[y * this.width + x] = value;
      }
    }
  }

  // The ellipse that fills the box between two corners.
  ellipse(one, other, value) {
    const [cx, cy] = [(one.x + other.x) / 2, (one.y + other.y) / 2];
    const [rx, ry] = [Math.max(0.5, Math.abs(one.x - other.x) / 2), Math.max(0.5, Math.abs(one.y - other.y) / 2)];
    for (let y = this.row(cy - ry); y <= this.row(cy + ry); y++) {
      for (let x = this.column(cx - rx); x <= this.column(cx + rx); x++) {
        if (Math.hypot((x + 0.5 - cx) / rx, (y + 0.5 - cy) / ry) <= 1) this.mask[y * this.width + x] = value;
      }
    }
  }

  // The border between two layers that is nearest to a point in its column: {above, below, y}, or null.
  border(point) {
    const x = this.column(point.x);
    let found = null;
    for (let y = 1; y < this.height; y++) {
      const [above, below] = [this.mask[(y - 1) * this.width + x], this.mask[y * this.width + x]];
      if (above !== below && (!found || Math.abs(y - point.y) < Math.abs(found.y - point.y))) found = {above, below, y};
    }
    return found;
  }

  // Move one border, as `border` found it, to the line between two points: in each column the stretch between where it
  // was and where it shall be becomes the layer above or below.
  moveBorder(border, from, to) {
    const [start, end] = [this.column(Math.min(from.x, to.x)), this.column(Math.max(from.x, to.x))];
    for (let x = start; x <= end; x++) {
      const part = to.x === from.x ? 1 : Math.min(1, Math.max(0, (x + 0.5 - from.x) / (to.x - from.x)));
      const wanted = this.row(from.y + part * (to.y - from.y));
      let was = -1;
      for (let y = 1; y < this.height; y++) {
        const here = this.mask[(y - 1) * this.width + x] === border.above && this.mask[y * this.width + x] === border.below;
        if (here && (was < 0 || Math.abs(y - wanted) < Math.abs(was - wanted))) was = y;
      }
      if (was < 0) continue;
      for (let y = was; y < wanted; y++) this.mask[y * this.width + x] = border.above;
      for (let y = wanted; y < was; y++) this.mask[y * this.width + x] = border.below;
    }
  }
}
