// What a browser makes of the status page: called by scripts/test-page, which has an agent at URL. Each step that fails ends it.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { MODULES, URL, STATE, PICTURES, TOKEN, HOME } = process.env;
const require = createRequire(`${MODULES}/package.json`);
const puppeteer = require('puppeteer-core');
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const step = text => console.log(`page: ${text}`);

const browser = await puppeteer.launch({
  executablePath: '/usr/bin/chromium', headless: true, userDataDir: `${HOME}/browser`, timeout: 120000, protocolTimeout: 240000,
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage'],
});
const page = await browser.newPage();
page.setDefaultTimeout(120000);
const asked = [], complaints = [];
page.on('request', request => asked.push(request.url()));
page.on('console', message => { if (message.type() === 'error') complaints.push(message.text()); });
page.on('pageerror', error => complaints.push(String(error)));
let question = null;
page.on('dialog', async dialog => { question = dialog.message(); await dialog.accept(); });

const sized = (width, height) => page.setViewport({ width, height, deviceScaleFactor: 1 });
const shade = value => page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value }]);
const drawn = () => page.waitForSelector('html[data-drawn]');
const textOf = selector => page.$eval(selector, found => found.innerText);
async function accessible(what) {
  await page.evaluate(axe);
  const { violations, passes } = await page.evaluate(() => axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'] }));
  const told = violations.map(v => `${v.id}: ${v.nodes.map(n => n.html + ' ' + (n.any[0]?.message ?? '')).join(' | ')}`);
  assert.deepEqual(told, [], what);
  assert(passes.some(p => p.id === 'color-contrast'), `${what}: contrast was looked at`);
  step(`${what}: ${passes.length} rules of axe pass`);
}

// The door.
await sized(1200, 900);
await page.goto(URL);
assert(page.url().endsWith('/login'));
await accessible('login');
await page.type('input[name=token]', 'wrong');
await page.keyboard.press('Enter');
await page.waitForSelector('[role=alert]');
complaints.length = 0; // the browser reports the status 401
await page.type('input[name=token]', TOKEN);
await Promise.all([page.waitForNavigation(), page.keyboard.press('Enter')]);
await drawn();
step('a token opens the page, and another one does not');

// What others wrote is text.
const label = '<script>window.hacked=1</script><img src=x onerror=window.hacked=1>';
assert((await textOf('#clusters')).includes(label));
assert.deepEqual(await page.evaluate(() => [typeof window.hacked, document.images.length, document.scripts.length]), ['undefined', 0, 1]);
step('a hostile label is text');

// A moment, by the keyboard alone.
await page.focus('#ask-cluster');
const path = [];
for (let n = 0; n < 4; n += 1) {
  await page.keyboard.press('Tab');
  path.push(await page.evaluate(() => document.activeElement.id || document.activeElement.tagName));
}
assert.deepEqual(path, ['ask-kind', 'ask-time', 'ask-slide', 'BUTTON']);
await page.keyboard.press('Enter');
await page.waitForSelector('#plan pre#line');
const line = await textOf('#line');
assert.match(line, /^pitr --config \S+pitr\.toml restore --cluster main --target-time \S+ --to /);
assert.match(await textOf('#plan'), /last commit/);
// The line is one that pitr understands.
const words = line.replace('/path/of/a/new/directory', `${HOME}/restored`).split(' ').concat('--dry-run');
execFileSync(words[0], words.slice(1), { stdio: 'pipe' });
step('a plan by the keyboard, and its line does what it says');

// A moment that cannot be reached.
await page.$eval('#ask-time', input => { input.value = '2001-01-01 00:00:00'; });
await page.click('#ask button');
await page.waitForFunction(() => document.querySelector('#plan').innerText.includes('Out of reach'));
await page.$eval('#ask-time', input => { input.value = 'yesterday'; });
await page.click('#ask button');
await page.waitForFunction(() => document.querySelector('#plan').innerText.includes('Write the moment as'));
// By another kind of target.
await page.select('#ask-kind', 'name');
await page.type('#ask-time', 'no.such.point');
await page.click('#ask button');
await page.waitForFunction(() => document.querySelector('#plan').innerText.includes('no.such.point'));
await page.select('#ask-kind', 'lsn');
assert.equal(await page.$eval('#ask-time', input => input.value), '');
// By the picture.
const box = await (await page.$('#clusters svg')).boundingBox();
await page.mouse.click(box.x + box.width - 60, box.y + 30);
assert.match(await page.$eval('#ask-time', input => input.value), /^20\d\d-\d\d-\d\d /);
await page.click('#ask button');
await page.waitForFunction(() => !/Write the moment|is made/.test(document.querySelector('#plan').innerText));
step('what is out of reach is said so');

// A job.
const before = readFileSync(`${STATE}/page.json`, 'utf8').match(/-full"/g).length;
await page.click('button[aria-label="Run now: full"]');
await page.waitForFunction(() => true);
assert.equal(question, 'Run job full now?');
for (let n = 0; ; n += 1) {
  assert(n < 600, 'the job runs');
  const now = readFileSync(`${STATE}/page.json`, 'utf8');
  if (now.match(/-full"/g).length > before) break;
  await new Promise(done => setTimeout(done, 200));
}
step('a job is started from the page');

for (const [name, scheme, width, height] of [['page', 'light', 1000, 900], ['page-dark', 'dark', 1000, 900], ['page-phone', 'light', 360, 800]]) {
  await shade(scheme);
  await sized(width, height);
  await page.reload();
  await drawn();
  // Six weeks of a cluster, with a hole, damage and a drill: what the picture is for.
  await page.evaluate(() => {
    window.look = async () => {};
    const state = JSON.parse(JSON.stringify(shownState));
    state.host = 'db1';
    const cluster = state.observed.info.clusters[0];
    const end = Date.parse(state.now), hour = 3600000;
    const at = hours => new Date(end - hours * hour).toISOString();
    cluster.repository = '/var/backups/pitr';
    cluster.backups = Array.from({ length: 84 }, (_, n) => ({ ...cluster.backups[0], id: `backup-${n}`, label: n % 14 ? '' : 'weekly', kind: n % 14 ? 'incremental' : 'full', damaged: n === 23, stored_bytes: n % 14 ? 3e8 : 9e9, stop_time: at((84 - n) * 12) }));
    cluster.recovery_windows = [[1008, 700], [640, 0.1]].map(([from, to]) => ({ ...cluster.recovery_windows[0], from: at(from), to: at(to) }));
    cluster.gaps = [{ timeline: cluster.timeline, from_lsn: '1/3A000000', to_lsn: '1/41000000', segments: 7 }];
    cluster.drills = [{ newest: { time: at(300), checks_failed: 0 }, proven: { time: at(300), checks_failed: 0 } }];
    state.observed.lines[0] = state.observed.lines[0].filter(line => !line.startsWith('receiver'));
    seen = '';
    draw(state);
  });
  const titles = await page.$$eval('#clusters svg title', found => found.map(one => one.textContent));
  const told = beginning => titles.filter(title => title.startsWith(beginning));
  assert.equal(told('drill ').length, 2, `${name}: ${titles}`);
  assert(told('drill ').every(title => title.endsWith('passed')), `${name}: ${titles}`);
  assert.equal(told('not reachable: ').length, 1, `${name}: ${titles}`);
  assert.equal(titles.filter(title => title.endsWith(' DAMAGED')).length, 1, `${name}: ${titles}`);
  assert.match(await textOf('#clusters'), /gap on timeline 1: 1\/3A000000 to 1\/41000000, 7 segments/);
  await accessible(name);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert(wide <= 0, `${name}: ${wide} pixels too wide`);
  await page.screenshot({ path: `${PICTURES}/${name}.png`, clip: { x: 0, y: 0, width, height } });
}
await shade('light');
await sized(1000, 900);
await page.reload();
await drawn();

// A finding with what helps, a drill that failed, a disk that fills, and backups that go.
await page.evaluate(() => {
  const state = JSON.parse(JSON.stringify(shownState));
  const { observed } = state;
  const cluster = observed.info.clusters[0];
  const [backup] = cluster.backups;
  observed.conditions = [
    { id: 'main/receiver/trouble', severity: 'medium', summary: 'main: the receiver has trouble', next: 'pitr doctor' },
    { id: 'main/recovery/gap', severity: 'critical', summary: 'main: 7 segments of timeline 1 missing', next: 'pitr wal gaps --heal' },
  ];
  cluster.drills = [{ newest: { time: state.now, failed: 'replay', checks_failed: 0 }, proven: null }];
  cluster.retention = { backups: [
    { id: backup.id, fate: 'keep', kept_until: '2027-01-02T03:04:05Z', reason: 'keep_daily' },
    { id: 'backup-1', fate: 'mark', kept_until: null, reason: 'no rule keeps it' },
    { id: 'backup-2', fate: 'keep', kept_until: null, reason: 'keep_last' },
  ] };
  observed.rooms = [
    { repository: 'local', total_bytes: 2 ** 40, free_bytes: 2 ** 38, full_in_s: 5 * 86400, notes: [] },
    { repository: 'offsite', total_bytes: 2 ** 40, free_bytes: 2 ** 39, full_in_s: null, notes: [] },
  ];
  seen = '';
  draw(state);
});
const found = await page.$$eval('#findings li', all => all.map(one => [one.innerText.split('\n')[0], one.querySelector('pre').innerText]));
assert.deepEqual(found, [
  ['critical: main: 7 segments of timeline 1 missing', 'pitr wal gaps --heal'],
  ['medium: main: the receiver has trouble', 'pitr doctor'],
]);
assert.match(await page.$eval('#clusters svg rect.fail title', title => title.textContent), /^drill .* FAILED$/);
const stored = await textOf('#storage');
assert.match(stored, /local\s+256 GiB of 1\.0 TiB\s+full in 5 days, as it grew lately/);
assert.match(stored, /offsite\s+512 GiB of 1\.0 TiB\s+no growth was measured/);
const [, goes] = stored.split('Goes next');
assert(goes, stored);
assert.match(goes, /kept until 2027-01-02 03:04:05 UTC\s+keep_daily/);
assert.match(goes, /backup-1\s+goes\s+no rule keeps it/);
assert(!goes.includes('backup-2'), goes);
await accessible('findings, forecast and what goes next');
step('findings with next commands, drills, gaps, the forecast and what goes next are drawn');
await page.reload();
await drawn();

// A thousand backups..
const many = await page.evaluate(() => {
  const state = JSON.parse(JSON.stringify(shownState));
  const cluster = state.observed.info.clusters[0];
  const one = cluster.backups[0];
  const end = Date.parse(state.now);
  cluster.backups = Array.from({ length: 1000 }, (_, n) => ({ ...one, id: `${one.id}-${n}`, kind: n % 7 ? 'incremental' : 'full', damaged: n % 100 === 99, stop_time: new Date(end - (1000 - n) * 3600000).toISOString() }));
  cluster.recovery_windows = Array.from({ length: 20 }, (_, n) => ({ ...cluster.recovery_windows[0], from: new Date(end - (1000 - n * 50) * 3600000).toISOString(), to: new Date(end - (960 - n * 50) * 3600000).toISOString() }));
  const times = [];
  // The first one warms up.
  for (let n = 0; n < 8; n += 1) {
    seen = '';
    const begin = performance.now();
    draw(state);
    document.body.getBoundingClientRect();
    times.push(performance.now() - begin);
  }
  times.shift();
  return { times, marks: document.querySelectorAll('svg circle, svg path.damaged').length, holes: document.querySelectorAll('svg rect.hole').length };
});
assert.equal(many.marks, 1000);
assert.equal(many.holes, 19);
const median = [...many.times].sort((a, b) => a - b)[3];
assert(median < 200, `1 000 backups take ${median} ms`);
step(`1 000 backups are drawn in ${median.toFixed(0)} ms, the median of seven (${many.times.map(t => t.toFixed(0)).join(', ')})`);

// Never green when nobody knows.
const verdict = async state => page.evaluate(change => {
  const state = Object.assign(JSON.parse(JSON.stringify(shownState)), change);
  draw(state);
  return [document.querySelector('#verdict').className, document.querySelector('#verdict').innerText];
}, state);
const bad = await page.evaluate(() => ({ observed: { ...shownState.observed, conditions: [{ id: 'x', severity: 'critical', summary: 'x', next: null }] } }));
for (const change of [{ is_old: true }, { observed: null }, bad]) {
  const [shown, text] = await verdict(change);
  assert(shown !== 'good', `${JSON.stringify(change)}: ${text}`);
}

assert(asked.length > 0 && asked.every(url => url.startsWith(URL) || url.startsWith('data:')), asked.filter(url => !url.startsWith(URL)).join());
assert.deepEqual(complaints, []);
step('nothing came from elsewhere, and the browser complained of nothing');
await browser.close();
