const data = JSON.parse(document.getElementById("data").textContent);
const space = data.space;

/** An element with attributes and children; texts are always texts, never markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const percent = (share) => (share === 0 ? "" : share < 0.01 ? "<1" : String(Math.round(100 * share)));
const keptDims = (layer, head) =>
  data.kept.head_dim[layer].filter((i) => Math.floor(i / space.head_dim) === head).map((i) => i % space.head_dim);

// --- the map ---------------------------------------------------------------------------------------------------------------

function cell(layer, head) {
  const kept = head === null ? data.kept.mlp_neuron[layer].length : keptDims(layer, head).length;
  const all = head === null ? space.neurons : space.head_dim;
  const name = head === null ? `MLP of layer ${layer}` : `head ${head} of layer ${layer}`;
  const unit = head === null ? "neurons" : "dims";
  const button = make("button", {
    type: "button", title: `${name}: ${kept} of ${all} ${unit} kept`, "aria-label": `${name}, ${kept} of ${all} ${unit} kept`,
    "aria-pressed": "false", style: `--share:${kept / all}`, "data-layer": layer, "data-head": head === null ? "mlp" : head,
  }, percent(kept / all));
  if (kept === 0) button.className = "none";
  button.addEventListener("click", () => choose(button));
  return button;
}

function drawMap() {
  const table = make("table", { "aria-label": "kept share of every head and MLP, in percent" });
  const heads = make("tr", {}, make("th", {}, ""));
  for (let head = 0; head < space.heads; head++) heads.append(make("th", { scope: "col" }, String(head)));
  heads.append(make("th", { scope: "col", style: "width:22%" }, "MLP"));
  table.append(heads);
  for (let layer = space.layers - 1; layer >= 0; layer--) {
    const row = make("tr", {}, make("th", { scope: "row" }, String(layer)));
    for (let head = 0; head < space.heads; head++) row.append(make("td", {}, cell(layer, head)));
    row.append(make("td", {}, cell(layer, null)));
    table.append(row);
  }
  table.addEventListener("keydown", move);
  document.getElementById("map").append(table);
}

function move(event) {
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  if (!(event.key in steps) || event.target.tagName !== "BUTTON") return;
  const here = event.target.closest("td");
  const [down, right] = steps[event.key];
  const row = down ? here.parentElement[down > 0 ? "nextElementSibling" : "previousElementSibling"] : here.parentElement;
  const there = row && row.cells[here.cellIndex + right];
  const button = there && there.querySelector("button");
  if (button) { button.focus(); event.preventDefault(); }
}

function choose(button) {
  for (const other of document.querySelectorAll('#map button[aria-pressed="true"]')) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  const layer = Number(button.dataset.layer);
  if (button.dataset.head === "mlp") showNeurons(layer);
  else showHead(layer, Number(button.dataset.head));
}

// --- inside ----------------------------------------------------------------------------------------------------------------

function words(title, ids) {
  const line = make("p", {}, `${title}: `);
  for (const id of ids) line.append(make("span", { class: "token" }, data.vocabulary[id]), " ");
  return line;
}

function grid(kept, all) {
  const dims = make("div", { class: "dims", role: "img", "aria-label": `${kept.length} of ${all} kept: ${kept.join(", ")}` });
  const open = new Set(kept);
  for (let i = 0; i < all; i++) dims.append(make("i", { class: open.has(i) ? "kept" : "", title: String(i) }));
  return dims;
}

function showHead(layer, head) {
  const kept = keptDims(layer, head);
  const panel = [make("h3", {}, `Head ${head} of layer ${layer}`), make("p", {}, `${kept.length} of ${space.head_dim} dims kept:`),
    grid(kept, space.head_dim)];
  const said = (data.heads[layer] || {})[head];
  if (said) {
    const between = said.interval ? ` (${said.interval.map((value) => value.toFixed(2)).join(" to ")})` : "";
    panel.push(make("p", {}, `Direct effect on the logit difference of the answers: ${said.direct.toFixed(3)}${between}`),
      words("What it writes there promotes", said.promoted), words("and demotes", said.demoted));
  }
  for (const prompt of data.attention) {
    const bytes = prompt.patterns[`${layer}.${head}`];
    if (bytes) panel.push(...attention(prompt, bytes));
  }
  if (kept.length === 0) panel.push(make("p", { class: "hint" }, "The circuit does without this head."));
  show(panel);
}

function attention({ prompt, tokens }, coded) {
  const n = tokens.length, side = 12;
  const bytes = Uint8Array.from(atob(coded), (c) => c.charCodeAt(0));
  const canvas = make("canvas", { width: n * side, height: n * side, role: "img", "aria-label": "attention: rows look at columns" });
  const context = canvas.getContext("2d");
  for (let from = 0; from < n; from++) for (let to = 0; to <= from; to++) {
    const grey = 255 - bytes[from * n + to];
    context.fillStyle = `rgb(${grey},${grey},${grey})`;
    context.fillRect(to * side, from * side, side, side);
  }
  const strongest = make("p", { class: "hint" });
  const last = Array.from(bytes.slice((n - 1) * n), (weight, to) => [weight, to]).sort((a, b) => b[0] - a[0]).slice(0, 3);
  strongest.append("From the last token it looks at ");
  for (const [weight, to] of last) strongest.append(make("span", { class: "token" }, tokens[to]), ` ${(weight / 255).toFixed(2)} `);
  const pointed = make("p", { class: "hint" }, "Point at the picture to read a weight.");
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const to = Math.floor(n * (event.clientX - box.left) / box.width), from = Math.floor(n * (event.clientY - box.top) / box.height);
    if (from < 0 || from >= n || to < 0 || to > from) return;
    pointed.replaceChildren("from ", make("span", { class: "token" }, tokens[from]), " to ", make("span", { class: "token" }, tokens[to]),
      ` ${(bytes[from * n + to] / 255).toFixed(2)}`);
  });
  return [make("p", {}, "Attention in the full model: ", make("span", { class: "corrupted" }, prompt)), canvas, strongest, pointed];
}

function neuronRow(layer, position) {
  const said = data.neurons[layer];
  const row = make("tr", {}, make("th", { scope: "row" }, String(data.kept.mlp_neuron[layer][position])));
  for (const ids of [said.promoted[position], said.demoted[position]]) {
    const entry = make("td", { style: "text-align:left" });
    for (const id of ids) entry.append(make("span", { class: "token" }, data.vocabulary[id]), " ");
    row.append(entry);
  }
  return row;
}

const PAGE = 100;

function showNeurons(layer) {
  const kept = data.kept.mlp_neuron[layer];
  const panel = [make("h3", {}, `MLP of layer ${layer}`), make("p", {}, `${kept.length} of ${space.neurons} neurons kept, the best ranked first.`)];
  if (kept.length && data.neurons[layer]) {
    const body = make("tbody");
    panel.push(make("table", {}, make("thead", {}, make("tr", {}, make("th", {}, "neuron"), make("th", {}, "promotes"), make("th", {}, "demotes"))), body));
    let shown = 0;
    const button = make("button", { type: "button" }, "more");
    const more = () => {
      for (const position of data.order[layer].slice(shown, shown + PAGE)) body.append(neuronRow(layer, position));
      shown += PAGE;
      button.hidden = shown >= kept.length;
    };
    button.addEventListener("click", more);
    more();
    panel.push(button);
  } else panel.push(grid(kept, space.neurons));
  show(panel);
}

const show = (panel) => document.getElementById("inside").replaceChildren(...panel);

// --- searching -------------------------------------------------------------------------------------------------------------

const MOST = 60;

function search() {
  const wanted = document.getElementById("search").value.toLowerCase().trim();
  const results = document.getElementById("results"), hits = document.getElementById("hits");
  results.replaceChildren();
  hits.textContent = "";
  if (!wanted) return;
  const matching = new Set(Object.keys(data.vocabulary).filter((id) => data.vocabulary[id].toLowerCase().includes(wanted)).map(Number));
  const found = [];
  const look = (name, open, said) => {
    for (const [verb, ids] of [["promotes", said.promoted], ["demotes", said.demoted]])
      for (const id of ids) if (matching.has(id)) found.push([name, verb, id, open]);
  };
  for (const [layer, heads] of Object.entries(data.heads))
    for (const [head, said] of Object.entries(heads)) look(`head ${head} of layer ${layer}`, [layer, head], said);
  for (const [layer, said] of Object.entries(data.neurons))
    said.promoted.forEach((promoted, i) =>
      look(`neuron ${data.kept.mlp_neuron[layer][i]} of layer ${layer}`, [layer, "mlp"], { promoted, demoted: said.demoted[i] }));
  hits.textContent = found.length === 0 ? "none" : `${found.length} found${found.length > MOST ? `, the first ${MOST} shown` : ""}`;
  for (const [name, verb, id, [layer, head]] of found.slice(0, MOST)) {
    const button = make("button", { type: "button" }, "open");
    button.addEventListener("click", () => {
      const target = document.querySelector(`#map button[data-layer="${layer}"][data-head="${head}"]`);
      choose(target);
      target.focus();
    });
    results.append(make("p", {}, `${name} ${verb} `, make("span", { class: "token" }, data.vocabulary[id]), " ", button));
  }
}

function filterPrompts() {
  const wanted = document.getElementById("filter").value.toLowerCase();
  for (const row of document.querySelectorAll("#answers tbody tr")) row.hidden = !row.textContent.toLowerCase().includes(wanted);
}

drawMap();
document.getElementById("search").addEventListener("input", search);
document.getElementById("filter").addEventListener("input", filterPrompts);

// --- edges -----------------------------------------------------------------------------------------------------------------

const STEP = Math.max(34, 560 / (space.heads + 1)), ROW = 30, MARGIN = 46;

function shape(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Where a node is drawn: later layers higher, an MLP above the heads of its layer. */
function place(name) {
  const bottom = MARGIN + space.layers * ROW, middle = MARGIN + (space.heads * STEP) / 2;
  if (name === "input") return [middle, bottom + ROW];
  if (name === "logits") return [middle, MARGIN - ROW / 2];
  const [, kind, layer, head] = name.match(/^([am])(\d+)(?:\.h(\d+))?$/);
  const y = bottom - Number(layer) * ROW;
  return kind === "m" ? [MARGIN + space.heads * STEP + STEP / 2, y - ROW / 2] : [MARGIN + Number(head) * STEP, y];
}

function drawEdges() {
  const width = MARGIN * 2 + (space.heads + 1) * STEP, height = MARGIN * 2 + (space.layers + 1) * ROW;
  const picture = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "group", "aria-label": "kept edges between nodes" });
  const strongest = Math.abs(data.edges[0].score) || 1;
  for (const edge of data.edges) {
    const [x1, y1] = place(edge.source);
    const lines = edge.nodes.map(place).map(([x2, y2]) => `M${x1},${y1} C${x1},${(y1 + y2) / 2} ${x2},${(y1 + y2) / 2} ${x2},${y2}`);
    const strength = Math.sqrt(Math.abs(edge.score) / strongest);
    edge.line = shape("path", {
      d: lines.join(" "), class: edge.score < 0 ? "edge against" : "edge",
      "stroke-width": (0.6 + 2.6 * strength).toFixed(2), "stroke-opacity": (0.15 + 0.75 * strength).toFixed(2),
    }, shape("title", {}, `${edge.name} ${edge.score.toFixed(4)}`));
    picture.append(edge.line);
  }
  const names = new Set(data.edges.flatMap((edge) => [edge.source, ...edge.nodes]));
  for (const name of names) {
    const [x, y] = place(name);
    const node = shape("g", { class: "node", tabindex: "0", role: "button", "aria-pressed": "false", "data-node": name, transform: `translate(${x},${y})` },
      shape("rect", { x: -15, y: -7, width: 30, height: 14, rx: 3 }), shape("text", { y: 3.5, "text-anchor": "middle" }, name.replace(".h", ".")));
    node.addEventListener("click", () => follow(name));
    node.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { follow(name); event.preventDefault(); } });
    picture.append(node);
  }
  document.getElementById("graph").append(picture);
  const strength = document.getElementById("strength");
  strength.max = data.edges.length;
  strength.value = Math.min(100, data.edges.length);
  strength.addEventListener("input", showEdges);
  showEdges();
}

let followed = null;

function follow(name) {
  followed = followed === name ? null : name;
  showEdges();
}

/** Show the strongest edges, or those of the chosen node among them. */
function showEdges() {
  const shown = data.edges.slice(0, Number(document.getElementById("strength").value));
  const own = shown.filter((edge) => followed === null || edge.source === followed || edge.nodes.includes(followed));
  const visible = new Set(own), reached = new Set(own.flatMap((edge) => [edge.source, ...edge.nodes]));
  for (const edge of data.edges) edge.line.style.display = visible.has(edge) ? "" : "none";
  for (const node of document.querySelectorAll("#graph .node")) {
    node.classList.toggle("faint", !reached.has(node.dataset.node));
    node.setAttribute("aria-pressed", String(node.dataset.node === followed));
  }
  document.getElementById("shown").textContent = `${shown.length} of ${data.edges.length}`;
  const panel = document.getElementById("followed");
  if (followed === null) {
    panel.replaceChildren(make("p", { class: "hint" }, "Choose a node to see its edges."));
    return;
  }
  const list = (title, edges) => [make("h4", {}, title), make("ul", {}, ...edges.map((edge) => make("li", {}, `${edge.name} ${edge.score.toFixed(4)}`)))];
  panel.replaceChildren(make("h3", {}, followed), ...list("It reads", own.filter((edge) => edge.nodes.includes(followed))),
    ...list("It is read by", own.filter((edge) => edge.source === followed)));
}

if (data.edges.length) drawEdges();
