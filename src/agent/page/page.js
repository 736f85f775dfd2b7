'use strict';
// Draws what /api/state tells. Everything in it is text of others: it becomes text nodes, never markup.
const byId = id => document.getElementById(id);
const SVG = 'http://www.w3.org/2000/svg';
const DAY = 86400000;
// The tenant that is looked at; none: what the agent itself was configured for.
const TENANT = new URLSearchParams(location.search).get('tenant') || '';
const api = (path, tenant, ...pairs) => `api/${path}?${[...pairs, tenant ? `tenant=${encodeURIComponent(tenant)}` : ''].filter(Boolean).join('&')}`;

function element(name, properties, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) made.setAttribute(key, value);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}
function shape(name, properties, title) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
  if (title) made.append(Object.assign(document.createElementNS(SVG, 'title'), { textContent: title }));
  return made;
}
function label(x, y, anchor, text) {
  const made = shape('text', { x, y, 'text-anchor': anchor });
  made.textContent = text;
  return made;
}
function table(heads, rows) {
  const head = element('tr', {}, ...heads.map(h => element('th', { scope: 'col' }, h)));
  const body = rows.map(cells => element('tr', {}, ...cells.map(cell => element('td', {}, cell ?? ''))));
  const made = element('table', {}, element('thead', {}, head), element('tbody', {}, ...body));
  // What is wider than a telephone scrolls, also by the keyboard.
  return element('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-label': heads.join(', ') }, made);
}

const time = text => (text ? text.replace('T', ' ').replace(/\.\d+/, '').replace('Z', ' UTC') : '');
const millis = text => Date.parse(text);
// The first whole second that is not before a moment: cut off, it would name one outside of a window.
const begin = text => time(/\.\d*[1-9]/.test(text) ? new Date(1000 * Math.floor(millis(text) / 1000) + 1000).toISOString() : text);
function size(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) { bytes /= 1024; at += 1; }
  return `${at === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[at]}`;
}
function long(seconds) {
  if (seconds < 120) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

// The windows that a target time can lead to: those of the timeline that is the cluster.
function windows(cluster) {
  const own = cluster.recovery_windows.filter(w => w.timeline === cluster.timeline);
  return (own.length ? own : cluster.recovery_windows).slice().sort((a, b) => millis(a.from) - millis(b.from));
}

function verdict(state) {
  const first = shade => state.of_tenants.find(one => one.verdict[0] === shade);
  const worst = first('bad') || first('warn');
  const own = ownVerdict(state);
  if (!worst || own[0] === 'bad' || own[0] === worst.verdict[0]) return own;
  return [worst.verdict[0], `Tenant ${worst.name}: ${worst.verdict[1]}`];
}
function ownVerdict(state) {
  const observed = state.observed;
  if (!observed) return ['warn', 'Nobody has looked yet. Nothing is known.'];
  if (state.is_old) return ['bad', `Unknown: the last look was ${long((millis(state.now) - millis(observed.collected)) / 1000)} ago.`];
  if (!observed.info && !observed.error) return ['good', 'No tenant of this host has trouble.'];
  if (!observed.info) return ['bad', `Unknown: ${observed.error || 'nothing could be looked at'}`];
  if (observed.failures.length) return ['bad', `Not everything could be looked at: ${observed.failures[0]}`];
  const clusters = observed.info.clusters;
  const broken = clusters.filter(c => c.state === 'critical').map(c => c.name);
  if (broken.length) return ['bad', `Recovery is NOT ASSURED: ${broken.join(', ')}`];
  if (observed.info.state === 'critical') return ['bad', 'Something does not work. The findings tell what.'];
  const written = (observed.info.written || []).map(c => c.name);
  if (written.length) return ['warn', `This host only writes. Whether it can be recovered is judged where a key reads: ${written.join(', ')}`];
  const shaky = observed.info.state === 'warning' || observed.conditions.some(c => c.severity === 'critical' || c.severity === 'high');
  const what = clusters.length === 1 ? 'The cluster can be recovered' : `All ${clusters.length} clusters can be recovered`;
  if (!clusters.length) return [shaky ? 'warn' : 'good', shaky ? 'There are findings.' : 'Nothing is wrong with the content that is kept.'];
  return shaky ? ['warn', `${what}; there are findings.`] : ['good', `${what}.`];
}

function tenants(state) {
  if (TENANT) return element('p', {}, element('a', { href: '.' }, 'All of this host'));
  return table(['tenant', 'state', 'looked at'], state.of_tenants.map(one => [
    element('a', { href: `?tenant=${encodeURIComponent(one.name)}` }, one.name),
    element('span', { class: one.verdict[0] }, one.verdict[1]), time(one.collected)]));
}

function findings(observed) {
  const all = observed ? observed.conditions : [];
  if (!all.length) return element('p', { class: observed ? 'good' : 'faint' }, observed ? 'Nothing is wrong.' : 'Nobody has looked yet.');
  const shades = { critical: 'bad', high: 'bad', medium: 'warn', low: 'faint' };
  const order = ['critical', 'high', 'medium', 'low'];
  const sorted = all.slice().sort((a, b) => order.indexOf(a.severity) - order.indexOf(b.severity));
  return element('ul', {}, ...sorted.map(one => element('li', {},
    element('strong', { class: shades[one.severity] || 'faint' }, `${one.severity}: `), one.summary,
    one.next ? element('pre', {}, one.next) : null)));
}

// The picture of one cluster along time.
function picture(cluster, now, width) {
  const began = performance.now();
  const moments = cluster.backups.map(b => millis(b.stop_time)).concat(cluster.recovery_windows.map(w => millis(w.from)));
  const first = Math.min(now - DAY / 24, ...(moments.length ? [moments.reduce((a, b) => Math.min(a, b))] : []));
  const left = 70, right = width - 8;
  const x = at => left + (right - left) * Math.min(1, Math.max(0, (at - first) / (now - first)));
  const drawn = windows(cluster);
  const reach = drawn.length ? `every moment from ${begin(drawn[0].from)} to ${time(drawn[drawn.length - 1].to)}` : 'no moment can be reached';
  const svg = shape('svg', { viewBox: `0 0 ${width} 150`, role: 'img', 'aria-label': `${cluster.name}: ${cluster.backups.length} backups, ${drawn.length} windows (${reach}), ${cluster.gaps.length} gaps` });
  svg.append(label(0, 34, 'start', 'windows'), label(0, 69, 'start', 'backups'), label(0, 104, 'start', 'drills'));
  svg.append(shape('line', { class: 'axis', x1: left, x2: right, y1: 122, y2: 122 }));
  const ticks = Math.max(2, Math.floor(width / 180));
  for (let n = 0; n <= ticks; n += 1) {
    const at = first + (now - first) * n / ticks;
    const text = new Date(at).toISOString();
    const anchor = n === 0 ? 'start' : n === ticks ? 'end' : 'middle';
    svg.append(label(x(at).toFixed(1), 140, anchor, now - first > 3 * DAY ? text.slice(0, 10) : text.slice(5, 16).replace('T', ' ')));
  }
  let reached = null;
  for (const window of drawn) {
    const from = millis(window.from), to = millis(window.to);
    if (reached !== null && from > reached) {
      svg.append(shape('rect', { class: 'hole', x: x(reached), y: 21, width: Math.max(2, x(from) - x(reached)), height: 18 }, `not reachable: ${time(new Date(reached).toISOString())} to ${time(window.from)}`));
    }
    svg.append(shape('rect', { class: 'window', x: x(from).toFixed(1), y: 20, width: Math.max(2, x(to) - x(from)).toFixed(1), height: 20 }, `timeline ${window.timeline}: ${begin(window.from)} to ${time(window.to)}${window.broken ? '; ' + window.broken : ''}`));
    reached = Math.max(reached ?? to, to);
  }
  for (const backup of cluster.backups) {
    const at = x(millis(backup.stop_time));
    const title = `${backup.id} ${time(backup.stop_time)} ${size(backup.stored_bytes)} ${backup.label}${backup.damaged ? ' DAMAGED' : ''}`;
    if (backup.damaged) svg.append(shape('path', { class: 'damaged', d: `M${at - 5} 60 l10 10 m0 -10 l-10 10` }, title));
    else svg.append(shape('circle', { class: backup.kind, cx: at.toFixed(1), cy: 65, r: backup.kind === 'full' ? 5 : 3.5 }, title));
  }
  const drills = (cluster.drills || []).flatMap(d => [d.newest, d.proven]).filter(Boolean);
  for (const drill of drills) {
    const failed = Boolean(drill.failed) || drill.checks_failed > 0;
    svg.append(shape('rect', { class: failed ? 'fail' : 'pass', x: x(millis(drill.time)) - 4, y: 96, width: 8, height: 8 }, `drill ${time(drill.time)} ${failed ? 'FAILED' : 'passed'}`));
  }
  svg.addEventListener('click', event => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left) / box.width * width;
    pick(cluster.name, first + (now - first) * Math.min(1, Math.max(0, (at - left) / (right - left))));
    byId('ask-time').focus();
  });
  document.documentElement.dataset.drawMs = (performance.now() - began).toFixed(1);
  return svg;
}

function clusterParts(state) {
  const { info, lines } = state.observed;
  const now = millis(state.now);
  const width = Math.max(320, byId('clusters').clientWidth);
  const parts = info.clusters.flatMap((cluster, index) => {
    const reach = windows(cluster);
    const can = cluster.state === 'critical' ? ['bad', 'Recovery is NOT ASSURED.']
      : reach.length ? ['good', `Any moment from ${begin(reach[reach.length - 1].from)} to ${time(reach[reach.length - 1].to)}.`] : ['bad', 'Nothing can be recovered.'];
    const newest = cluster.backups.slice(-8).reverse();
    return [
      element('h3', {}, `${cluster.name} `, element('span', { class: 'faint' }, `PostgreSQL ${cluster.major}, ${cluster.repository}`)),
      element('p', { class: state.is_old ? 'faint' : can[0] }, can[1]),
      ...(lines[index] || []).map(line => element('p', {}, line)),
      picture(cluster, now, width),
      ...cluster.gaps.map(gap => element('p', { class: 'bad' }, `gap on timeline ${gap.timeline}: ${gap.from_lsn} to ${gap.to_lsn}, ${gap.segments} segments`)),
      newest.length ? table(['backup', 'complete', 'stored', 'note'], newest.map(b => [b.id, time(b.stop_time), size(b.stored_bytes), [b.damaged ? 'damaged' : '', b.pinned ? 'pinned' : '', b.label].filter(Boolean).join(', ')])) : null,
      cluster.backups.length > newest.length ? element('p', { class: 'faint' }, `and ${cluster.backups.length - newest.length} older ones: pitr info`) : null,
    ];
  });
  for (const one of info.written || []) {
    const broken = one.state === 'critical';
    parts.push(element('h3', {}, `${one.name} `, element('span', { class: 'faint' }, one.repository)),
      element('p', { class: state.is_old ? 'faint' : broken ? 'bad' : 'warn' }, broken ? 'Something does not work. The findings tell what.' : 'This host only writes: recovery is judged where a key reads the repository.'),
      one.backups.length ? table(['newest backup', 'complete'], one.backups.map(b => [b.id, time(b.time)])) : null);
  }
  const scopes = info.scopes || [];
  if (scopes.length) {
    parts.push(element('h3', {}, 'Other content'), table(['content', 'repository', 'newest backup', 'state'], scopes.map(s => [s.scope, s.repository, s.backups.length ? time(s.backups[s.backups.length - 1].stop_time) : 'none', s.state])));
  }
  return parts.filter(Boolean);
}

function jobs(state) {
  if (!state.jobs.length) return element('p', { class: 'faint' }, 'No job is configured.');
  const result = job => {
    if (job.overdue_since) return element('span', { class: 'bad' }, `overdue since ${time(job.overdue_since)}`);
    if (job.running && job.failing) return element('span', { class: 'bad' }, `failed, runs again since ${time(job.running_since)}`);
    if (job.running) return element('span', {}, `running since ${time(job.running_since)}`);
    if (job.last_success === true) return element('span', { class: 'good' }, 'ok');
    if (job.last_success === false) return element('span', { class: 'bad' }, job.last_status === null ? 'killed' : `failed, status ${job.last_status}`);
    return element('span', { class: 'faint' }, job.elsewhere ? `ran on ${job.elsewhere}` : 'never ran');
  };
  const heads = ['job', 'command', 'last run', 'result', 'next run'];
  if (state.actions) heads.push('start');
  return table(heads, state.jobs.map(job => {
    const cells = [job.name, job.command, time(job.last_scheduled), result(job), time(job.next)];
    if (state.actions) {
      const button = element('button', { type: 'button', 'aria-label': `Run now: ${job.name}` }, 'Run now');
      button.addEventListener('click', () => start(job.name));
      cells.push(button);
    }
    return cells;
  }));
}

function running(state) {
  return state.running.map(one => {
    const bar = one.percent === null ? null : element('progress', { max: 100, value: one.percent, 'aria-label': one.line });
    return element('p', {}, ...[one.line, bar].filter(Boolean));
  });
}

function storage(observed) {
  if (!observed) return element('p', { class: 'faint' }, 'Nobody has looked yet.');
  const rows = observed.rooms.map(room => [room.repository, `${size(room.free_bytes)} of ${size(room.total_bytes)}`,
    room.full_in_s === null ? 'no growth was measured' : `full in ${long(room.full_in_s)}, as it grew lately`]);
  const held = observed.info ? observed.info.clusters.map(c => [c.name, `${c.backups.length} backups`, size(c.backups.reduce((sum, b) => sum + b.stored_bytes, 0))]) : [];
  const goes = observed.info ? observed.info.clusters.flatMap(c => ((c.retention || {}).backups || []).filter(b => b.fate !== 'keep' || b.kept_until).slice(0, 5)
    .map(b => [c.name, b.id, b.fate === 'keep' ? `kept until ${time(b.kept_until)}` : 'goes', b.reason])) : [];
  const parts = [];
  if (held.length) parts.push(table(['cluster', 'backups', 'stored'], held));
  if (rows.length) parts.push(table(['repository', 'free', 'forecast'], rows));
  if (goes.length) parts.push(element('h3', {}, 'Goes next'), table(['cluster', 'backup', 'when', 'rule'], goes));
  return element('div', {}, ...parts);
}

// The explorer: a moment, the plan, the line to paste.
let shownState = null;
function chosen() {
  const info = shownState && shownState.observed && shownState.observed.info;
  return info ? info.clusters.find(c => c.name === byId('ask-cluster').value) : null;
}
function range(cluster) {
  const all = cluster ? windows(cluster) : [];
  return all.length ? [millis(all[0].from), millis(all[all.length - 1].to)] : null;
}
// A moment as it is asked for. Cut to milliseconds, the begin of a window would name one before it.
function moment(cluster, at) {
  const begun = (cluster ? windows(cluster) : []).find(w => millis(w.from) === Math.floor(at));
  const text = begun ? begun.from : new Date(at).toISOString();
  return text.replace('T', ' ').replace('Z', '');
}
const KINDS = {
  time: [/^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z$/, '2026-11-20 06:40:49'],
  lsn: [/^[0-9A-Fa-f]{1,8}\/[0-9A-Fa-f]{1,8}$/, '0/16B3740'],
  xid: [/^\d{1,20}$/, '742'],
  name: [/^[A-Za-z0-9._][A-Za-z0-9._-]*$/, 'before-the-release'],
};
byId('ask-kind').addEventListener('change', () => {
  byId('ask-time').value = '';
  byId('ask-time').placeholder = KINDS[byId('ask-kind').value][1];
});
function pick(name, at) {
  byId('ask-cluster').value = name;
  byId('ask-kind').value = 'time';
  byId('ask-time').value = moment(chosen(), at);
  const span = range(chosen());
  if (span) byId('ask-slide').value = Math.round(1000 * (at - span[0]) / Math.max(1, span[1] - span[0]));
  described();
}
function described() { byId('ask-slide').setAttribute('aria-valuetext', byId('ask-time').value); }
byId('ask-slide').addEventListener('input', () => {
  const span = range(chosen());
  if (!span) return;
  const at = span[0] + (span[1] - span[0]) * Number(byId('ask-slide').value) / 1000;
  byId('ask-kind').value = 'time';
  byId('ask-time').value = moment(chosen(), at);
  described();
});
byId('ask').addEventListener('submit', async event => {
  event.preventDefault();
  const place = byId('plan');
  const kind = byId('ask-kind').value, written = byId('ask-time').value.trim();
  const asked = kind === 'time' ? written.replace(' ', 'T').replace(/Z?$/, 'Z') : written;
  if (!KINDS[kind][0].test(asked)) {
    place.replaceChildren(element('p', { class: 'bad' }, `Write the moment as ${KINDS[kind][1]}.`));
    return;
  }
  place.replaceChildren(element('p', {}, 'The plan is made …'));
  const answer = await fetch(api('plan', TENANT, `cluster=${byId('ask-cluster').value}`, `${kind}=${asked}`));
  const told = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  place.replaceChildren(...planParts(told));
});
function planParts(told) {
  const plan = told.plan;
  if (!plan) return [element('p', { class: 'bad' }, told.error || 'there is no plan')];
  const end = one => (one ? `transaction ${one.xid}, ${time(one.time)}, at ${one.lsn}` : 'none');
  const near = one => (one ? `${one.time ? time(one.time) : ''} LSN ${one.lsn}` : 'nothing');
  if (!plan.reachable) {
    return [element('p', { class: 'bad' }, `Out of reach: ${plan.explanation || plan.reason}`),
      table(['nearest moment', ''], [['before', near(plan.nearest_before)], ['after', near(plan.nearest_after)]])];
  }
  const rows = [
    ['backup', `${plan.backup.id}, complete at ${time(plan.backup.stop_time)}`],
    ['WAL', `${plan.segments_needed.count} segments, all there`],
    ['last commit', end(plan.last_commit)],
    ['first excluded', end(plan.first_excluded)],
    ['work', `${size(plan.bytes_to_copy)} to copy, ${size(plan.bytes_to_replay)} of WAL to replay`],
    ['time', plan.estimate ? `about ${long(plan.estimate.ms / 1000)}, by ${plan.estimate.drills} drills` : 'not known'],
  ];
  const copy = element('button', { type: 'button' }, 'Copy');
  copy.addEventListener('click', () => navigator.clipboard && navigator.clipboard.writeText(told.line));
  return [element('p', { class: 'good' }, plan.outcome === 'end_of_wal' ? 'Everything that is archived is replayed.' : 'Recovery ends at this moment.'),
    table(['part', ''], rows), ...(plan.warnings || []).map(w => element('p', { class: 'warn' }, w)),
    element('p', {}, 'On the host that is to have it:'), element('pre', { id: 'line', tabindex: '0' }, told.line), copy];
}

async function start(name) {
  if (!confirm(`Run job ${name} now?`)) return;
  const answer = await fetch(api('run', TENANT, `job=${name}`), { method: 'POST' });
  if (!answer.ok) alert((await answer.json().catch(() => ({}))).error || `status ${answer.status}`);
  await look();
}

let seen = '';
function draw(state) {
  shownState = state;
  const observed = state.observed;
  byId('host').textContent = TENANT ? `${state.host}, tenant ${TENANT}` : state.host;
  document.title = `pitr ${byId('host').textContent}`;
  const [shade, text] = verdict(state);
  if (byId('verdict').textContent !== text) byId('verdict').textContent = text;
  byId('verdict').className = shade;
  byId('age').textContent = observed ? `Looked at everything ${time(observed.collected)}. pitr ${state.version}.` : '';
  byId('running').replaceChildren(...running(state));
  // What has not changed stays, with focus and scroll position.
  const now = JSON.stringify([state.jobs, state.of_tenants, observed && observed.collected, state.is_old, byId('clusters').clientWidth]);
  if (now === seen) return;
  seen = now;
  byId('of-tenants').hidden = !state.tenants.length;
  byId('tenants').replaceChildren(tenants(state));
  byId('findings').replaceChildren(findings(observed));
  byId('jobs').replaceChildren(jobs(state));
  byId('storage').replaceChildren(storage(observed));
  if (!observed || !observed.info) {
    byId('clusters').replaceChildren(element('p', { class: 'faint' }, 'Nothing is known.'));
    return;
  }
  byId('clusters').replaceChildren(...clusterParts(state));
  const names = observed.info.clusters.map(c => c.name);
  const select = byId('ask-cluster');
  if (names.join() !== [...select.options].map(o => o.value).join()) {
    select.replaceChildren(...names.map(name => element('option', { value: name }, name)));
    const span = range(chosen());
    if (span) pick(select.value, span[1]);
  }
  document.documentElement.dataset.drawn = 'yes';
}

async function stateOf(tenant) {
  const answer = await fetch(api('state', tenant));
  if (answer.status === 401) location.assign('login');
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error || `status ${answer.status}`);
  return told;
}
async function standing(name) {
  try {
    const state = await stateOf(name);
    return { name, verdict: ownVerdict(state), collected: state.observed && state.observed.collected };
  } catch (e) {
    return { name, verdict: ['bad', `Unknown: ${e.message}`] };
  }
}
async function look() {
  try {
    const state = await stateOf(TENANT);
    state.of_tenants = TENANT ? [] : await Promise.all(state.tenants.map(standing));
    draw(state);
  } catch (e) {
    byId('verdict').className = 'bad';
    byId('verdict').textContent = `Unknown: the agent does not answer (${e.message}).`;
  }
}
look();
setInterval(() => { if (document.visibilityState === 'visible') look(); }, 15000);
document.addEventListener('visibilitychange', () => { if (document.visibilityState === 'visible') look(); });
let resizing = 0;
addEventListener('resize', () => { clearTimeout(resizing); resizing = setTimeout(() => shownState && draw(shownState), 200); });
