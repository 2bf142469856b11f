// Live figures and plots of the Overview; selection and confirmation on Parked. Text from the server is only ever set as text.
"use strict";

const KEPT = 300;
const INTERVAL_MS = 1000;
const byId = (id) => document.getElementById(id);

// --- live figures

const samples = [];
// Which run of which replica they are of.
let run = "";

function show(key, text) {
  for (const element of document.querySelectorAll(`[data-live="${key}"]`)) {
    if (element.textContent !== text) element.textContent = text;
  }
}

function milliseconds(value, max) {
  if (value === null || value === undefined) return "–";
  return value >= max ? `over ${(max / 1000).toFixed(0)} s` : `${value.toFixed(1)} ms`;
}

function showReasons(reasons) {
  const list = byId("reasons");
  const shown = JSON.stringify(reasons);
  if (list.dataset.shown === shown) return;
  list.dataset.shown = shown;
  list.replaceChildren(...reasons.map((reason) => {
    const item = document.createElement("li");
    const name = document.createElement("strong");
    item.className = reason.warning ? "warn" : "bad";
    name.textContent = reason.component;
    item.append(name, ` ${reason.text}`);
    return item;
  }));
}

// A little more than the largest value, in steps, so that the scale does not tremble.
function ceiling(largest) {
  if (!(largest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(largest));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= largest);
}

function draw(figure) {
  const series = figure.dataset.series.split(" ");
  const values = series.map((name) => samples.map((sample) => sample[name]));
  const top = ceiling(Math.max(0, ...values.flat().filter((value) => value !== null)));
  figure.querySelector(".top").textContent = `${top}${figure.dataset.unit && " "}${figure.dataset.unit}`;
  ["first", "second"].forEach((name, index) => {
    let path = "";
    let open = false;
    (values[index] ?? []).forEach((value, at) => {
      if (value === null) { open = false; return; }
      const x = 300 - (samples.length - 1 - at) * (300 / (KEPT - 1));
      const y = 99 - (value / top) * 94;
      path += `${open ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`;
      if (!open && (values[index][at + 1] ?? null) === null) path += "h0.6";
      open = true;
    });
    figure.querySelector(`path.${name}`).setAttribute("d", path);
  });
}

function apply(now) {
  if (now.run !== run) samples.length = 0;
  run = now.run;
  samples.push(...now.samples);
  samples.splice(0, Math.max(0, samples.length - KEPT));
  const last = samples[samples.length - 1];
  show("role", now.role);
  show("mode", now.mode);
  show("mode_reason", now.mode_reason);
  show("confirmed", last ? last.confirmed.toFixed(0) : "–");
  show("p50", milliseconds(last?.p50_ms, now.latency_max_ms));
  show("p99", milliseconds(last?.p99_ms, now.latency_max_ms));
  show("pending", now.leads ? String(now.pending) : "–");
  show("oldest_pending", now.leads ? `${now.oldest_pending_s.toFixed(1)} s` : "–");
  show("parked", now.leads ? String(now.parked) : "–");
  show("window_in_use", now.leads ? String(now.window_in_use) : "–");
  byId("elsewhere").hidden = now.leads;
  show("confirmed_total", String(now.confirmed_total));
  const ready = byId("ready");
  ready.textContent = now.ready ? "ready" : "not ready";
  ready.className = `pill ${now.ready ? "good" : "bad"}`;
  showReasons(now.reasons);
  document.querySelectorAll(".plot").forEach(draw);
}

async function refresh() {
  const offline = byId("offline");
  try {
    const since = samples.length > 0 ? samples[samples.length - 1].n : 0;
    const answer = await fetch(`/api/live?since=${since}&run=${run}`, { signal: AbortSignal.timeout(5000) });
    if (answer.status === 401) { location.reload(); return; }
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    apply(await answer.json());
    offline.hidden = true;
  } catch {
    offline.textContent = "This relay does not answer. What is shown is old; trying again each second.";
    offline.hidden = false;
  }
  setTimeout(refresh, INTERVAL_MS);
}

// --- retry and discard

let token = "";

function selected() {
  return [...document.querySelectorAll('#acts input[name="id"]:checked')].map((box) => box.value);
}

function count(number) {
  return number === 1 ? "1 event" : `${number} events`;
}

function showSelection() {
  const number = selected().length;
  byId("selected").textContent = number === 0 ? "nothing is selected" : `${count(number)} selected`;
  for (const button of document.querySelectorAll("[data-act]")) button.disabled = number === 0;
  const boxes = document.querySelectorAll('#acts input[name="id"]');
  byId("all").checked = number === boxes.length;
  byId("all").indeterminate = number > 0 && number < boxes.length;
}

function confirmAct(act) {
  const number = selected().length;
  byId("confirm").dataset.act = act;
  byId("confirm-title").textContent = act === "retry" ? `Retry ${count(number)}?` : `Discard ${count(number)}?`;
  byId("confirm-text").textContent = act === "retry"
    ? "The leader publishes what is selected again, within a second or so."
    : "What is selected is never published, and what is behind it goes on. This cannot be undone.";
  byId("why").required = act === "discard";
  byId("why-optional").hidden = act === "discard";
  byId("confirm-error").hidden = true;
  byId("token").value = token;
  byId("confirm").showModal();
}

function failed(text) {
  byId("confirm-error").textContent = text;
  byId("confirm-error").hidden = false;
}

async function ask(event) {
  event.preventDefault();
  const button = byId("confirm-yes");
  button.disabled = true;
  const form = new URLSearchParams(selected().map((id) => ["id", id]));
  form.append("why", byId("why").value);
  try {
    const answer = await fetch(`/parked/${byId("confirm").dataset.act}`, {
      method: "POST", body: form, headers: { Authorization: `Bearer ${byId("token").value}` },
    });
    const { said } = await answer.json();
    if (answer.ok) {
      token = byId("token").value;
      byId("confirm").close();
      sessionStorage.setItem("said", said);
      byId("said").textContent = said;
      byId("said").hidden = false;
      setTimeout(() => location.reload(), 2000);
    } else {
      failed(said);
    }
  } catch {
    failed("The relay did not answer: nothing is known about what was asked for. Reload to see.");
  }
  button.disabled = false;
}

function prepareActs() {
  const said = sessionStorage.getItem("said");
  if (said !== null) {
    sessionStorage.removeItem("said");
    byId("said").textContent = said;
    byId("said").hidden = false;
  }
  if (!byId("all")) return;
  byId("acts").addEventListener("change", (event) => {
    if (event.target.id === "all") {
      for (const box of document.querySelectorAll('#acts input[name="id"]')) box.checked = event.target.checked;
    }
    showSelection();
  });
  byId("acts").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-act]")) {
    button.addEventListener("click", () => confirmAct(button.dataset.act));
  }
  byId("confirm-form").addEventListener("submit", ask);
  byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  showSelection();
}

if (byId("ready")) refresh();
if (byId("acts")) prepareActs();
