'use strict';
// Draws the page from its data. Every text goes into the page as text, never as HTML.
const data = JSON.parse(document.getElementById('data').textContent);
const runs = data.runs;
const colors = [0, 1, 2, 3, 4, 5].map(n => `var(--r${n})`);
const color = n => colors[n % colors.length];

function make(name, attributes = {}, ...children) {
  const isSvg = ['svg', 'path', 'line', 'text', 'rect', 'circle', 'g'].includes(name);
  const node = isSvg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) node.addEventListener(key.slice(2), value);
    else if (key === 'style') node.style.cssText = value;
    else node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

// Four significant digits, without exponents where they are not needed.
function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return '-';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return Number(value.toPrecision(3)).toExponential();
  return String(Number(value.toPrecision(4)));
}
const three = value => value === null || value === undefined ? '-' : value.toFixed(3);
const signed = value => (value > 0 ? '+' : '') + value.toFixed(3);
function seconds(value) {
  if (value < 59.95) return value.toFixed(1) + ' s';
  const whole = Math.round(value), hours = Math.floor(whole / 3600), minutes = Math.floor(whole / 60) % 60;
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}
const count = (n, one) => `${n.toLocaleString('en')} ${n === 1 ? one : one + 's'}`;
const runName = n => runs.length > 1 ? `${n + 1}: ${runs[n].name}` : runs[n].name;

// Ticks at round numbers.
function ticks(low, high, most) {
  const rough = (high - low) / Math.max(1, most);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(n => n * power).find(step => step >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) found.push(n * step);
  return found;
}

// Lines with a cursor that reads their values, and zoom: drag over a part, double-click for all.
function chart(title, lines, options = {}) {
  const host = make('div', { class: 'chart' }), legend = make('div', { class: 'legend' });
  const reset = make('button', { type: 'button', hidden: '', onclick: () => zoom(null) }, 'show all');
  lines = lines.filter(line => line.x.length > 0);
  const values = lines.map(line => {
    const value = make('span');
    legend.append(make('span', {}, make('i', { style: `background:${line.color}` }), line.name + ' ', value));
    return value;
  });
  const whole = options.x || [Math.min(...lines.map(line => line.x[0])), Math.max(...lines.map(line => line.x[line.x.length - 1]))];
  let view = whole, drag = null, place = null;
  const height = options.height || 210, left = 52, right = 10, top = 8, bottom = 34;

  function zoom(next) { view = next || whole; reset.hidden = next === null; draw(); }

  function inView(line) {
    let from = line.x.findIndex(x => x >= view[0]), to = line.x.length;
    if (from < 0) from = line.x.length;
    while (to > from && line.x[to - 1] > view[1]) to--;
    return [Math.max(0, from - 1), Math.min(line.x.length, to + 1)];
  }

  function draw() {
    const width = Math.max(220, host.clientWidth);
    let [low, high] = [Infinity, -Infinity];
    for (const line of lines) {
      const [from, to] = inView(line);
      for (let n = from; n < to; n++) { low = Math.min(low, line.y[n]); high = Math.max(high, line.y[n]); }
    }
    if (options.y) [low, high] = options.y;
    if (low === high) { low -= Math.abs(low) * 0.1; high += Math.abs(high) * 0.1 || 1; }
    if (!options.y) { const rim = (high - low) * 0.05; if (low >= 0 && low - rim < 0) low = 0; else low -= rim; high += rim; }
    const toX = x => left + (x - view[0]) / (view[1] - view[0] || 1) * (width - left - right);
    const toY = y => top + (high - y) / (high - low) * (height - top - bottom);
    const svg = make('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': title });
    for (const y of ticks(low, high, 5)) {
      svg.append(make('line', { class: 'rule', x1: left, x2: width - right, y1: toY(y), y2: toY(y) }),
        make('text', { x: left - 6, y: toY(y) + 4, 'text-anchor': 'end' }, short(y)));
    }
    for (const x of ticks(view[0], view[1], width / 90)) {
      svg.append(make('text', { x: toX(x), y: height - bottom + 15, 'text-anchor': 'middle' }, short(x)));
    }
    svg.append(make('line', { class: 'axis', x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      make('text', { x: (left + width - right) / 2, y: height - 3, 'text-anchor': 'middle' }, options.label || 'epoch'));
    if (options.diagonal) svg.append(make('line', { class: 'cursor', x1: toX(0), y1: toY(0), x2: toX(1), y2: toY(1) }));
    lines.forEach((line, index) => {
      const [from, to] = inView(line), step = Math.max(1, (to - from) / (4 * width));
      let path = '';
      for (let n = from; n < to; n += step) {
        const at = Math.floor(n);
        path += `${path ? 'L' : 'M'}${toX(line.x[at]).toFixed(1)} ${toY(line.y[at]).toFixed(1)}`;
      }
      const inside = [left, 0, width - left - right, height];
      svg.append(make('svg', { x: left, width: inside[2], height, viewBox: inside.join(' ') }, make('path', { d: path, style: `stroke:${line.color}` })));
      if (to - from <= 30) {
        for (let n = from; n < to; n++) {
          if (line.x[n] >= view[0] && line.x[n] <= view[1]) svg.append(make('circle', { cx: toX(line.x[n]), cy: toY(line.y[n]), r: 3, style: `fill:${line.color}` }));
        }
      }
      let near = line.x.length - 1;
      if (place !== null) line.x.forEach((x, n) => { if (Math.abs(x - place) < Math.abs(line.x[near] - place)) near = n; });
      values[index].textContent = place === null ? short(line.y[near]) : `${short(line.y[near])} at ${short(line.x[near])}`;
    });
    if (place !== null) svg.append(make('line', { class: 'cursor', x1: toX(place), x2: toX(place), y1: top, y2: height - bottom }));
    if (drag) {
      const [a, b] = [Math.min(drag.from, drag.to), Math.max(drag.from, drag.to)];
      svg.append(make('rect', { class: 'band', x: toX(a), width: toX(b) - toX(a), y: top, height: height - top - bottom }));
    }
    host.replaceChildren(svg);
  }

  const at = event => {
    const box = host.getBoundingClientRect(), width = Math.max(220, box.width);
    const share = (event.clientX - box.left - left) / (width - left - right);
    return view[0] + Math.min(1, Math.max(0, share)) * (view[1] - view[0]);
  };
  host.addEventListener('pointerdown', event => { drag = { from: at(event), to: at(event) }; });
  host.addEventListener('pointermove', event => { place = at(event); if (drag) drag.to = place; draw(); });
  host.addEventListener('pointerup', () => {
    const done = drag;
    drag = null;
    if (done && Math.abs(done.to - done.from) > (view[1] - view[0]) * 0.03) zoom([Math.min(done.from, done.to), Math.max(done.from, done.to)]);
    else draw();
  });
  host.addEventListener('pointerleave', () => { place = null; drag = null; draw(); });
  host.addEventListener('dblclick', () => zoom(null));
  host.style.height = `${height}px`;
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(host);
  return make('div', { class: 'card' }, make('h3', {}, title), lines.length ? host : make('p', { class: 'soft' }, 'no values'), legend, reset);
}

// A table that scrolls in its box. Columns: {name, text, sort, show}; rows are arrays of values.
function table(columns, rows, sortable) {
  const head = make('tr'), body = make('tbody');
  const show = () => body.replaceChildren(...rows.map(row => make('tr', {}, ...row.map((value, n) => {
    const column = columns[n], text = column.show ? column.show(value) : value === null ? '-' : String(value);
    const change = column.change && value !== null && Math.abs(value) >= 0.0005 ? (value > 0 ? ' up' : ' down') : '';
    return make('td', { class: (column.text ? 'text' : '') + (column.wrap ? ' wrap' : '') + change }, text);
  }))));
  columns.forEach((column, n) => {
    const cell = make('th', { class: (column.text ? 'text' : '') + (column.wrap ? ' wrap' : '') }, column.name);
    if (sortable) {
      cell.setAttribute('aria-sort', 'none');
      cell.tabIndex = 0;
      const sort = () => {
        const falling = cell.getAttribute('aria-sort') === 'none' ? !column.text : cell.getAttribute('aria-sort') === 'ascending';
        for (const other of head.children) other.setAttribute('aria-sort', 'none');
        cell.setAttribute('aria-sort', falling ? 'descending' : 'ascending');
        const least = falling ? -Infinity : Infinity;
        rows.sort((a, b) => column.text ? String(a[n]).localeCompare(String(b[n])) * (falling ? -1 : 1)
          : ((a[n] ?? least) < (b[n] ?? least) ? -1 : (a[n] ?? least) > (b[n] ?? least) ? 1 : 0) * (falling ? -1 : 1));
        show();
      };
      cell.addEventListener('click', sort);
      cell.addEventListener('keydown', event => { if (event.key === 'Enter') sort(); });
    }
    head.append(cell);
  });
  show();
  return make('div', { class: 'scroll' }, make('table', {}, make('thead', {}, head), body));
}

const page = document.getElementById('page'), main = make('main'), links = make('div');
function section(title, ...content) {
  const id = title.toLowerCase().replaceAll(' ', '-');
  links.append(make('a', { href: '#' + id }, title));
  main.append(make('section', { id }, make('h2', {}, title), ...content));
}
function choice(options, chosen, change) {
  const select = make('select', { onchange: () => change(select.value) },
    ...options.map(([value, name]) => make('option', value === chosen ? { value, selected: '' } : { value }, name)));
  return select;
}
// Content that a choice of buttons replaces.
function tabs(names, draw) {
  const host = make('div'), buttons = names.map((name, n) => make('button', { type: 'button', onclick: () => pick(n) }, name));
  const pick = chosen => {
    buttons.forEach((button, n) => button.setAttribute('aria-pressed', n === chosen));
    host.replaceChildren(...[draw(chosen)].flat().filter(node => node !== null));
  };
  pick(0);
  return [names.length > 1 ? make('div', { class: 'tools' }, ...buttons) : null, host];
}

const results = runs.map(run => run.results);
const kinds = [...new Set(results.flatMap(found => found ? Object.keys(found.kinds) : []))];
const kindName = kind => ({ bbox: 'boxes', segm: 'masks' })[kind] || kind;
// The runs with this kind: [number of the run, its analysis].
const of = kind => results.flatMap((found, n) => found && found.kinds[kind] ? [[n, found.kinds[kind]]] : []);

function overview() {
  const best = (run, name) => {
    const line = run.log && run.log.evaluations[name];
    if (!line) return null;
    const n = line.y.indexOf(Math.max(...line.y));
    return `${three(line.y[n])} (epoch ${line.x[n]})`;
  };
  const last = (run, set, name, form) => {
    const line = run.log && run.log[set][name];
    return line && line.y.length ? form(line.y[line.y.length - 1]) : null;
  };
  const metrics = [...new Set(runs.flatMap(run => run.log ? Object.keys(run.log.evaluations) : []))].filter(name => name.endsWith('_mAP'));
  const facts = [
    ['epochs', run => run.log && run.log.train.loss ? short(run.log.train.loss.x.at(-1)) : null],
    ...metrics.map(name => [`best ${name}`, run => best(run, name)]),
    ...metrics.map(name => [`last ${name}`, run => last(run, 'evaluations', name, three)]),
    ['last loss', run => last(run, 'train', 'loss', short)],
    ['seconds per step', run => { const line = run.log && run.log.train.time; return line ? short(line.y.reduce((a, b) => a + b, 0) / line.y.length) : null; }],
    ['GPU memory (MB)', run => last(run, 'train', 'memory', short)],
    ['starts', run => run.log ? run.log.starts : null],
    ['detections shown below', run => run.results ? `${run.results.file}: ${count(run.results.detections, 'detection')} in ${count(run.results.images, 'image')} of ${run.results.set}` : null],
  ];
  const rows = facts.map(([name, value]) => [name, ...runs.map(value)]).filter(row => row.slice(1).some(value => value !== null));
  const columns = [{ name: '', text: true }, ...runs.map((_, n) => ({ name: runName(n), text: true, wrap: true }))];
  const notes = runs.flatMap((run, n) => run.notes.concat(run.results ? run.results.notes : []).map(note => runs.length > 1 ? `${runName(n)}: ${note}` : note));
  section('Overview', make('div', { class: 'card' }, table(columns, rows)),
    data.comparison.length ? make('div', { class: 'card' }, make('pre', {}, data.comparison.join('\n'))) : null,
    ...notes.map(note => make('div', { class: 'card note' }, note)));
}

function curves() {
  const names = set => [...new Set(runs.flatMap(run => run.log ? Object.keys(run.log[set]) : []))];
  const draw = (set, name) => chart(name, runs.flatMap((run, n) => {
    const line = run.log && run.log[set][name];
    return line ? [{ name: runs.length > 1 ? runName(n) : '', color: color(n), ...line }] : [];
  }));
  const first = ['loss', 'lr'];
  const train = names('train').sort((a, b) => first.includes(b) - first.includes(a));
  const evaluated = names('evaluations').filter(name => name !== 'lr');
  if (train.length + evaluated.length === 0) return;
  section('Curves', make('p', { class: 'soft' }, 'Drag over a part to zoom in, double-click to show all.'),
    make('div', { class: 'grid' }, ...evaluated.map(name => draw('evaluations', name)), ...train.map(name => draw('train', name))));
}

function metrics() {
  const shown = results.map((found, n) => [n, found]).filter(([, found]) => found);
  if (!shown.length) return;
  const columns = [{ name: '', text: true }], cells = [];
  for (const kind of [...new Set(shown.flatMap(([, found]) => found.metrics))]) {
    const of = shown.filter(([, found]) => found.metrics.includes(kind));
    for (const [n, found] of of) {
      columns.push({ name: shown.length > 1 ? `${kind}, run ${n + 1}` : kind, show: three });
      cells.push(row => { const at = found.table.find(other => other[0] === row); return at ? at[2][found.metrics.indexOf(kind)] : null; });
    }
    if (of.length === 2) {
      const [a, b] = cells.slice(-2);
      columns.push({ name: 'difference', show: value => value === null ? '-' : signed(value), change: true });
      cells.push(row => a(row) === null || b(row) === null ? null : b(row) - a(row));
    }
  }
  columns.push({ name: '', text: true, wrap: true });
  const rows = shown[0][1].table.map(([name, meaning]) => [name, ...cells.map(cell => cell(name)), meaning]);
  const charts = kinds.map(kind => chart(`AP of ${kindName(kind)} by IoU threshold`, of(kind).map(([n, found]) =>
    ({ name: runs.length > 1 ? runName(n) : '', color: color(n), x: found.by_iou.map(point => point[0]), y: found.by_iou.map(point => point[1] ?? 0) })), { label: 'IoU threshold' }));
  section('Metrics', make('div', { class: 'card' }, table(columns, rows)), make('div', { class: 'pair' }, ...charts));
}

function classes() {
  section('Classes', ...tabs(kinds.map(kindName), at => {
    const shown = of(kinds[at]), [first, second] = shown.map(([, found]) => found.classes);
    const precision = ([correct, wrong]) => correct + wrong ? correct / (correct + wrong) : null;
    const recall = ([correct, , missed]) => correct + missed ? correct / (correct + missed) : null;
    const columns = [{ name: 'class', text: true }, { name: 'objects' }], parts = ['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl'];
    const rows = first.map((row, n) => {
      const values = [row.name, row.counts[0] + row.counts[2]];
      if (shown.length > 1) {
        const all = shown.map(([, found]) => found.classes[n] && found.classes[n].name === row.name ? found.classes[n].ap[0] : null);
        values.push(...all);
        if (second && shown.length === 2) values.push(all[0] === null || all[1] === null ? null : all[1] - all[0]);
      } else values.push(...row.ap, precision(row.counts), recall(row.counts));
      return values;
    });
    if (shown.length > 1) {
      columns.push(...shown.map(([n]) => ({ name: `AP, run ${n + 1}`, show: three })));
      if (shown.length === 2) columns.push({ name: 'difference', show: value => value === null ? '-' : signed(value), change: true });
    } else columns.push(...[...parts, 'precision', 'recall'].map(name => ({ name, show: three })));
    return [make('p', { class: 'soft' }, shown.length > 1 ? 'Select the head of a column to sort by it.'
      : `Precision and recall at IoU .50, with scores from ${short(shown[0][1].threshold)}, which gives the best F1 over all classes. Select the head of a column to sort by it.`),
      make('div', { class: 'card' }, table(columns, rows, true))];
  }));
}

function precisionRecall() {
  const parts = tabs(kinds.map(kindName), at => {
    const shown = of(kinds[at]), first = shown[0][1], host = make('div');
    let [curve, line] = [0, 0];
    const draw = () => host.replaceChildren(chart(`precision by recall, ${line ? first.classes[line - 1].name : 'all classes'}, ${first.curves[curve].name}`,
      shown.flatMap(([n, found]) => {
        const own = found.curves.find(other => other.name === first.curves[curve].name);
        const at = line && found.classes.findIndex(row => row.name === first.classes[line - 1].name) + 1;
        const values = own && (!line || at) && own.lines[at];
        return values ? [{ name: runs.length > 1 ? runName(n) : '', color: color(n), x: values.map((_, n) => n / (values.length - 1)), y: values.map(value => value / 1000) }] : [];
      }), { label: 'recall', x: [0, 1], y: [0, 1], height: 340 }));
    draw();
    return [make('div', { class: 'tools' },
      choice(first.curves.map((found, n) => [String(n), found.name]), '0', value => { curve = Number(value); draw(); }),
      choice([['0', 'all classes'], ...first.classes.map((found, n) => [String(n + 1), found.name])], '0', value => { line = Number(value); draw(); })), host];
  });
  section('Precision and recall', ...parts);
}

// One tab for each kind and run.
function each(draw) {
  const pairs = kinds.flatMap(kind => of(kind).map(([n, found]) => [kind, n, found]));
  return tabs(pairs.map(([kind, n]) => runs.length > 1 ? `${kindName(kind)}, run ${n + 1}` : kindName(kind)), at => draw(pairs[at][2]));
}

// A table of more classes would be slow.
const MOST_CLASSES = 80;
function confusions() {
  section('Confusions', ...each(found => {
    const names = [...found.classes.map(row => row.name), 'no object'], none = names.length - 1;
    const counts = new Map(found.confusion.map(([object, detection, number]) => [object * names.length + detection, number]));
    const get = (object, detection) => counts.get(object * names.length + detection) || 0;
    const totals = names.map(() => 0), wrong = names.map(() => 0), seen = new Set([none]);
    for (const [object, detection, number] of found.confusion) {
      totals[object] += number;
      seen.add(object).add(detection);
      if (object !== detection) { wrong[object] += number; wrong[detection] += number; }
    }
    const all = names.map((_, n) => n).filter(n => seen.has(n)), classes = all.filter(n => n !== none);
    const most = new Set([...classes].sort((a, b) => wrong[b] - wrong[a]).slice(0, MOST_CLASSES)), used = all.filter(n => n === none || most.has(n));
    const rows = used.map(object => make('tr', {}, make('th', { title: names[object] }, names[object]), ...used.map(detection => {
      const number = get(object, detection), share = totals[object] ? number / totals[object] : 0;
      const shade = number ? `background: rgba(var(${object === detection ? '--heat' : '--wrong'}), ${(0.08 + 0.72 * share).toFixed(2)})` : '';
      const said = `${names[object]} found as ${names[detection]}: ${number} of ${totals[object]}`;
      return make('td', { style: shade, title: said }, number ? String(number) : '');
    })));
    const head = make('tr', {}, make('th'), ...used.map(n => make('th', { title: names[n] }, make('span', {}, n === none ? 'missed' : names[n]))));
    const pairs = found.confusion.filter(([object, detection]) => object !== detection && object !== none && detection !== none).sort((a, b) => b[2] - a[2]).slice(0, 30)
      .map(([object, detection, number]) => [names[object], names[detection], number, number / totals[object]]);
    return [make('p', { class: 'soft' }, `Rows are objects, columns are detections with scores from ${short(found.threshold)}, matched at IoU .50 regardless of class. The last row has detections on no object, the last column objects that were missed. The color is the share of the row.`),
      classes.length > MOST_CLASSES ? make('p', { class: 'soft' }, `The ${MOST_CLASSES} of ${classes.length} classes with the most errors are shown.`) : null,
      make('div', { class: 'card scroll' }, make('table', { class: 'matrix' }, make('thead', {}, head), make('tbody', {}, ...rows))),
      pairs.length ? make('div', { class: 'card' }, make('h3', {}, 'The most frequent confusions'),
        table([{ name: 'object', text: true }, { name: 'found as', text: true }, { name: 'count' }, { name: 'share', show: value => (value * 100).toFixed(1) + '%' }], pairs, true)) : null];
  }));
}

const ERRORS = [['Cls', 'wrong class'], ['Loc', 'poor localization'], ['Both', 'wrong class and poor localization'], ['Dupe', 'duplicate'], ['Bkg', 'on no object'], ['Miss', 'missed object']];
function errors() {
  section('Errors', make('p', { class: 'soft' }, 'TIDE: how much AP50 would rise if all errors of one type were mended, and how many there are. Detections of all scores count.'),
    ...tabs(kinds.map(kindName), at => {
      const shown = of(kinds[at]), most = Math.max(0.001, ...shown.flatMap(([, found]) => ERRORS.map(([key]) => found.tide.ap[key] || 0)));
      const bars = make('div', { class: 'bars' });
      for (const [key, name] of ERRORS) {
        for (const [n, found] of shown) {
          const value = found.tide.ap[key] || 0;
          bars.append(make('span', {}, n === shown[0][0] ? name : ''), make('div', { class: 'bar', title: `${runName(n)}: ${three(value)}` },
            make('i', { style: `width:${(value / most * 100).toFixed(1)}%;background:${color(n)}` })));
        }
      }
      const columns = [{ name: 'type', text: true }, ...shown.flatMap(([n]) => {
        const run = shown.length > 1 ? `, run ${n + 1}` : '';
        return [{ name: 'AP50' + run, show: signed }, { name: 'count' + run, show: value => value.toLocaleString('en') }];
      })];
      return [make('div', { class: 'pair' }, make('div', { class: 'card' }, bars), make('div', { class: 'card' },
        table(columns, ERRORS.map(([key, name]) => [name, ...shown.flatMap(([, found]) => [found.tide.ap[key] || 0, found.tide.counts[key] || 0])]))))];
    }));
}

function calibration() {
  section('Calibration', make('p', { class: 'soft' }, 'How often detections of a score are correct at IoU .50. On the dashed line, scores are probabilities; below it, they are too high.'),
    ...tabs(kinds.map(kindName), at => {
      const shown = of(kinds[at]).filter(([, found]) => found.calibration);
      if (!shown.length) return make('p', {}, 'There is none: scores are not between 0 and 1.');
      const lines = shown.map(([n, { calibration: { ece, bins } }]) => {
        const used = bins.filter(bin => bin[2] > 0);
        return { name: `${runs.length > 1 ? runName(n) + ', ' : ''}mean error ${three(ece)},`, color: color(n), x: used.map(bin => bin[0]), y: used.map(bin => bin[1]) };
      });
      const columns = [{ name: 'scores', text: true }, ...shown.flatMap(([n]) => {
        const run = shown.length > 1 ? `, run ${n + 1}` : '';
        return [{ name: 'detections' + run, show: value => value.toLocaleString('en') }, { name: 'correct' + run, show: value => value === null ? '-' : (value * 100).toFixed(1) + '%' }];
      })];
      const rows = shown[0][1].calibration.bins.map((_, n) => [`${(n / 10).toFixed(1)} to ${((n + 1) / 10).toFixed(1)}`,
        ...shown.flatMap(([, found]) => { const [, accuracy, number] = found.calibration.bins[n]; return [number, number ? accuracy : null]; })]);
      return make('div', { class: 'pair' }, chart('share of correct detections by score', lines, { label: 'score', x: [0, 1], y: [0, 1], diagonal: true, height: 340 }),
        make('div', { class: 'card' }, table(columns, rows)));
    }));
}

function images() {
  if (!data.images.length) return;
  const dialog = make('dialog', { onclick: () => dialog.close() });
  const withResults = runs.map((_, n) => n).filter(n => runs[n].results);
  const source = image => 'data:image/jpeg;base64,' + image.jpeg;
  const show = image => { dialog.replaceChildren(make('img', { src: source(image), alt: image.name })); dialog.showModal(); };
  const caption = image => image.runs.map((run, n) => {
    const name = withResults.length > 1 ? `run ${withResults[n] + 1}: ` : '';
    if (!run) return name + 'not in its set';
    const confused = run[3] ? `, ${run[3]} confused` : '';
    return `${name}F1 ${run[4].toFixed(2)}, ${run[0]} correct, ${run[1]} wrong${confused}, ${run[2]} missed`;
  });
  const figures = data.images.map(image => ({ image, figure: make('figure', {},
    make('img', { src: source(image), alt: image.name, width: image.size[0], height: image.size[1], decoding: 'async', onclick: () => show(image) }),
    make('figcaption', {}, make('b', {}, image.name), ...caption(image).map(line => make('div', {}, line)))) }));
  const number = n => image => image.runs[0] ? image.runs[0][n] : 0;
  const orders = { group: () => 0, 'highest F1': image => -number(4)(image), 'lowest F1': number(4), 'most wrong': image => -number(1)(image), 'most missed': image => -number(2)(image), 'most confused': image => -number(3)(image), name: null };
  const groups = ['all', ...['different', 'confused', 'worst', 'best'].filter(group => data.images.some(image => image.group === group))];
  const host = make('div', { class: withResults.length > 1 ? 'images wide' : 'images' });
  let [group, order] = ['all', 'group'];
  const draw = () => {
    const shown = figures.filter(({ image }) => group === 'all' || image.group === group);
    if (order === 'name') shown.sort((a, b) => a.image.name.localeCompare(b.image.name));
    else if (order !== 'group') shown.sort((a, b) => orders[order](a.image) - orders[order](b.image));
    host.replaceChildren(...shown.map(({ figure }) => figure));
  };
  draw();
  const words = { all: 'all', different: 'the most different', confused: 'the most confused', worst: 'the worst', best: 'the best' };
  section('Images', make('p', { class: 'soft' }, 'Ground truth beside predictions. The counts are at IoU .50, with the score threshold that gives the best F1. Select an image to enlarge it.'),
    make('div', { class: 'tools' }, make('span', {}, 'show'), choice(groups.map(name => [name, words[name]]), 'all', value => { group = value; draw(); }),
      make('span', {}, 'in order of'), choice(Object.keys(orders).map(name => [name, name]), 'group', value => { order = value; draw(); })), host, dialog);
}

function times() {
  const shown = runs.map((run, n) => [n, run.log ? run.log.times : []]).filter(([, ranks]) => ranks.length);
  if (!shown.length) return;
  const parts = [...new Set(shown.flatMap(([, ranks]) => ranks.flatMap(Object.keys)))];
  const content = shown.map(([n, ranks]) => {
    const most = Math.max(...ranks.map(rank => Object.values(rank).reduce((a, b) => a + b, 0)));
    const bars = make('div', { class: 'bars' });
    ranks.forEach((rank, number) => {
      bars.append(make('span', {}, `rank ${number}`), make('div', { class: 'bar' }, ...parts.map((part, at) =>
        make('i', { title: `${part}: ${seconds(rank[part] || 0)}`, style: `width:${((rank[part] || 0) / most * 100).toFixed(2)}%;background:${color(at)};opacity:${at < 6 ? 1 : 0.55}` }))));
    });
    const columns = [{ name: 'rank' }, ...parts.map(part => ({ name: part, show: value => seconds(value) })), { name: 'all', show: seconds }];
    const rows = ranks.map((rank, number) => [number, ...parts.map(part => rank[part] || 0), Object.values(rank).reduce((a, b) => a + b, 0)]);
    const legend = make('div', { class: 'legend' }, ...parts.map((part, at) => make('span', {}, make('i', { style: `background:${color(at)};opacity:${at < 6 ? 1 : 0.55}` }), part)));
    return make('div', { class: 'card' }, runs.length > 1 ? make('h3', {}, runName(n)) : null, bars, legend, table(columns, rows, true));
  });
  section('Time', make('p', { class: 'soft' }, 'Seconds of each rank. Waiting is the time in which it waited for slower ranks, so the rank that waits least is the slowest. On a GPU, the parts of a step are the times in which kernels were launched, and what the GPU still does shows up where the step waits for it.'), ...content);
}

function configs() {
  const withConfig = runs.map((run, n) => [n, run]).filter(([, run]) => run.config || run.log);
  if (!withConfig.length) return;
  const columns = [{ name: 'field', text: true }, ...runs.map((_, n) => ({ name: runName(n), text: true, wrap: true }))];
  section('Machine and config',
    runs.length > 1 ? make('div', { class: 'card' }, make('h3', {}, 'Fields that differ'),
      data.differences === null ? make('p', { class: 'soft' }, 'a config is missing')
        : data.differences.length ? table(columns, data.differences.map(([path, values]) => [path, ...values])) : make('p', { class: 'soft' }, 'none')) : null,
    ...withConfig.flatMap(([n, run]) => [
      run.log && run.log.environment ? make('details', { class: 'card' }, make('summary', {}, runs.length > 1 ? `Machine of ${runName(n)}` : 'Machine'), make('pre', {}, run.log.environment)) : null,
      run.config ? make('details', { class: 'card' }, make('summary', {}, runs.length > 1 ? `Config of ${runName(n)}` : 'Config'), make('pre', {}, run.config)) : null]));
}

const dark = window.matchMedia('(prefers-color-scheme: dark)');
const theme = name => { document.documentElement.dataset.theme = name; };
theme(dark.matches ? 'dark' : 'light');
dark.addEventListener('change', () => theme(dark.matches ? 'dark' : 'light'));
const title = runs.map(run => run.name).join(', ');
document.title = `fnet report: ${title}`;
page.append(
  make('header', {}, make('h1', {}, title), make('span', { class: 'soft' }, `fnet ${data.version}, ${data.created}`),
    make('button', { type: 'button', onclick: () => theme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark') }, 'light / dark')),
  make('nav', {}, links), main);
overview();
curves();
metrics();
if (kinds.length) { classes(); precisionRecall(); confusions(); errors(); calibration(); }
images();
times();
configs();
