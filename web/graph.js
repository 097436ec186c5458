// Small line graphs as SVG: one or two series over time. A table of the same would be long; the label says the latest value.
import {el, clock} from './ui.js';

const NS = 'http://www.w3.org/2000/svg';
const WIDTH = 600, HEIGHT = 120, POINTS = 300;

function svg(tag, attributes) {
  const node = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// At most POINTS of them, each the greatest of its bucket, so that short peaks stay to be seen.
function thin(times, values) {
  const step = Math.max(1, Math.ceil(times.length / POINTS)), out = [];
  for (let i = 0; i < times.length; i += step) {
    let best = null;
    for (let j = i; j < Math.min(i + step, times.length); j++) {
      if (values[j] !== null && (best === null || values[j] > best)) best = values[j];
    }
    out.push([times[i], best]);
  }
  return out;
}

function path(points, from, to, top, gap) {
  let d = '', last = null;
  for (const [t, v] of points) {
    if (v === null) { last = null; continue; }
    const x = (t - from) / (to - from) * WIDTH, y = HEIGHT - v / top * (HEIGHT - 4);
    d += `${last === null || t - last > gap ? 'M' : 'L'}${x.toFixed(1)} ${y.toFixed(1)}`;
    last = t;
  }
  return d;
}

const nice = (value, binary) => {
  if (binary) return 2 ** Math.ceil(Math.log2(value));
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= value);
};

// names: of the series; format: a value as text; floor: the least that the scale's top may be; binary: it is a power of two.
export function graph(title, names, format, floor, binary) {
  const paths = names.map((name, i) => svg('path', {class: `line line-${i}`, 'vector-effect': 'non-scaling-stroke'}));
  const drawing = svg('svg', {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img'});
  for (const part of [0.5, 1]) drawing.append(svg('line', {class: 'grid', x1: 0, x2: WIDTH, y1: HEIGHT - part * (HEIGHT - 4), y2: HEIGHT - part * (HEIGHT - 4), 'vector-effect': 'non-scaling-stroke'}));
  drawing.append(...paths);
  const values = names.map((name, i) => el('span', {class: `legend legend-${i}`}));
  const top = el('span', {class: 'top'}), left = el('span'), right = el('span');
  const none = el('p', {class: 'none', hidden: true}, 'no samples yet');
  const node = el('figure', {class: 'graph'}, el('figcaption', {}, el('h3', {}, title), el('span', {class: 'legends'}, values)),
    el('div', {class: 'plot'}, drawing, top, none), el('div', {class: 'axis'}, left, right));
  // times in ms, ascending; series: an array of numbers or null for each name; gap: ms after which a line breaks
  const draw = (times, series, from, to, gap) => {
    const sets = series.map((set) => thin(times, set));
    const greatest = Math.max(floor, ...sets.flat().map(([, v]) => v || 0));
    const scale = nice(greatest, binary);
    paths.forEach((p, i) => p.setAttribute('d', path(sets[i], from, to, scale, gap * Math.max(1, Math.ceil(times.length / POINTS)) * 1.9)));
    const latest = series.map((set) => { const v = set[set.length - 1]; return v === undefined ? null : v; });
    values.forEach((node_, i) => { node_.textContent = `${names.length > 1 ? names[i] + ' ' : ''}${latest[i] === null ? '–' : format(latest[i])}`; });
    top.textContent = format(scale);
    left.textContent = to - from > 86400000 ? new Date(from).toLocaleDateString() : clock(from);
    right.textContent = 'now';
    none.textContent = times.length ? 'not counted here' : 'no samples yet';
    none.hidden = series.some((set) => set.some((v) => v !== null));
    drawing.setAttribute('aria-label', `${title}: ${values.map((v) => v.textContent).join(', ')} now; scale up to ${format(scale)}`);
  };
  return {node, draw};
}

// Areas on one another, for at most `most` names: what they are together, and each one's part of it. `steps` samples wide.
export function areas(title, most, format) {
  const drawing = svg('svg', {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img'});
  const paths = Array.from({length: most}, (_, i) => drawing.appendChild(svg('path', {class: `area area-${i}`})));
  const top = el('span', {class: 'top'});
  const keys = el('ul', {class: 'keys'});
  const node = el('figure', {class: 'graph tall'}, el('figcaption', {}, el('h3', {}, title)), el('div', {class: 'plot'}, drawing, top),
    el('div', {class: 'axis'}, el('span', {}, 'a minute ago'), el('span', {}, 'now')), keys);
  // samples: for each time, a number for each name
  const draw = (names, samples, steps) => {
    const sums = samples.map((values) => values.reduce((a, b) => a + b, 0));
    const scale = nice(Math.max(10, ...sums), false);
    const x = (i) => ((steps - samples.length + i) / Math.max(1, steps - 1) * WIDTH).toFixed(1), y = (v) => (HEIGHT - v / scale * (HEIGHT - 4)).toFixed(1);
    const below = samples.map(() => 0);
    paths.forEach((p, n) => {
      if (n >= names.length || !samples.length) { p.setAttribute('d', ''); return; }
      const floor = samples.map((_, i) => `L${x(i)} ${y(below[i])}`).reverse();
      samples.forEach((values, i) => { below[i] += values[n]; });
      p.setAttribute('d', `M${samples.map((_, i) => `${x(i)} ${y(below[i])}`).join('L')}${floor.join('')}Z`);
    });
    const latest = samples[samples.length - 1] || [];
    keys.replaceChildren(...names.map((name, n) => el('li', {class: `key area-key-${n}`}, `${name} `, el('span', {}, format(latest[n] || 0)))));
    top.textContent = format(scale);
    drawing.setAttribute('aria-label', `${title}: ${names.map((name, n) => `${name} ${format(latest[n] || 0)}`).join(', ')} now`);
  };
  return {node, draw};
}
