// Draws what explorer.py computes, and changes `choice` when a person does something.

const PART = 4 << 20; // JupyterLab closes the connection after a message of 10 MiB.
const MOST_BYTES = 200 << 20;
const SIGNS = { positive: "+", negative: "−" };
const NO_MARKS = { positive: [], negative: [], used: [[], []] };

const escape = (text) => String(text ?? "").replace(/[&<>"']/g, (c) => `&#${c.charCodeAt()};`);
const html = (parts, ...values) =>
  parts.reduce((text, part, i) => text + part + (i in values ? [values[i]].flat().join("") : ""), "");
const select = (name, key, values, chosen, all) => html`<label>${name}
  <select data-set="${key}" data-key="${key}">${all ? html`<option value="">${all}</option>` : ""}
  ${values.map((value) => html`<option ${value === chosen ? "selected" : ""}>${escape(value)}</option>`)}
  </select></label>`;
const toggle = (action, id, text, isOn) => html`<button data-do="${action}" data-id="${escape(id)}"
  data-key="${action}${escape(id)}" aria-pressed="${!!isOn}">${escape(text)}</button>`;
const picture = (source, alt) => html`<img src="${source}" alt="${escape(alt)}" draggable="false">`;

function render({ model, el }) {
  const get = (name) => model.get(name);
  el.classList.add("cbir");
  el.tabIndex = -1; // so that a picture can be pasted after a click anywhere
  el.innerHTML = html`<div class="cbir-app"><div class="cbir-bar"></div>
    <section class="cbir-query" aria-label="Query">
      <div class="cbir-card"></div>
      <div class="cbir-chooser"></div>
      <label class="cbir-drop">Drop a picture here, paste one, or <u>choose a file</u>
        <input type="file" accept="image/*,.tif,.tiff,.heic,.avif" aria-label="Your own picture"></label>
    </section>
    <section class="cbir-results" aria-label="Results">
      <div class="cbir-tools"></div>
      <p class="cbir-status" role="status"></p>
      <div class="cbir-panels"></div>
    </section></div>`;
  const [bar, card, chooser, tools, status, panels] = ["bar", "card", "chooser", "tools", "status",
    "panels"].map((name) => el.querySelector(`.cbir-${name}`));
  let refused = ""; // a message that only the browser can give

  const say = (text) => { refused = text; drawStatus(); };
  function change(values, choice = get("choice")) {
    // The kernel sends no answer if the choice is the same.
    if (Object.entries(values).every(([key, value]) => JSON.stringify(choice[key]) === JSON.stringify(value))) return;
    refused = "";
    model.set({ choice: { ...choice, ...values }, is_busy: true, status: "" });
    model.save_changes();
  }
  /** Replace what a pane shows; the focus stays on the same control. */
  function draw(pane, content) {
    const key = pane.contains(document.activeElement) && document.activeElement.dataset.key;
    pane.innerHTML = content;
    if (key) [...pane.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
  }

  function drawBar() {
    const { studies = [], architectures = [], searches = [], most_results } = get("options");
    const choice = get("choice");
    draw(bar, html`${select("Study", "study", studies, choice.study)}
      <div role="group" aria-label="Architectures"><span>Architectures</span>
        ${architectures.map((name) => toggle("architecture", name, name, choice.architectures?.includes(name)))}
      </div>
      ${select("Search", "search", searches, choice.search)}
      <label>Results <input type="number" min="1" max="${most_results}" value="${choice.k ?? ""}"
        data-set="k" data-key="k"></label>`);
    el.classList.toggle("cbir-exact", !!get("options").is_exact);
  }

  function drawCard() {
    const { name, label, image } = get("query"), choice = get("choice");
    const marked = get("marked").filter(({ id, sign }) => choice[sign]?.includes(id));
    draw(card, image ? html`${picture(image, `The query, ${name}`)}
      <div><b>${label ? escape(label) : "Your picture"}</b> <span class="cbir-name">${escape(name)}</span>
      ${marked.length ? html`<div class="cbir-marked" role="group" aria-label="Marked pictures">
        ${marked.map(({ id, sign, image }) => html`<button class="${sign}" data-do="unmark" data-id="${id}"
          data-key="unmark${id}" title="Remove this mark">${picture(image, `Remove the ${sign} mark`)}
          <i>${SIGNS[sign]}</i></button>`)}</div>` : ""}</div>` : "");
  }

  function drawChooser() {
    const { start, total, pictures } = get("queries"), choice = get("choice");
    const { classes = [], orders = [] } = get("options");
    if (!pictures) return draw(chooser, "");
    const end = start + pictures.length - 1;
    draw(chooser, html`<div role="group" aria-label="Choose a query from">
        <span>Choose from</span> ${toggle("tab", "", "pictures", !choice.is_map)}
        ${toggle("tab", "map", "map", choice.is_map)}</div>
      <div class="cbir-tabs">${select("Class", "label", classes, choice.label, "all")}
        ${choice.is_map ? "" : select("Order", "order", orders, choice.order)}</div>
      ${choice.is_map ? drawMap(classes.indexOf(choice.label), classes.length) : html`
      <div class="cbir-grid" role="group" aria-label="Queries">${pictures.map(({ id, label, image }, index) =>
        html`<button data-do="query" data-id="${id}" data-key="query${id}" title="${escape(label)}"
          tabindex="${index ? -1 : 0}" aria-current="${id === choice.query}">
          ${picture(image, `Search for this one, ${label}`)}</button>`)}</div>
      <div class="cbir-pages"><button data-do="page" data-id="-1" data-key="back" aria-label="Previous page"
          ${choice.page ? "" : "disabled"}>‹</button>
        ${total ? `${start}–${end} of ${total.toLocaleString("en")}` : "no queries"}
        <button data-do="page" data-id="1" data-key="next" aria-label="Next page"
          ${end < total ? "" : "disabled"}>›</button></div>`}`);
  }

  function drawMap(wanted, count) {
    const { ids, points, labels, caption } = get("points");
    if (!ids) return html`<p class="cbir-empty">The map has not been drawn yet.</p>`;
    const chosen = get("choice").query;
    // The chosen one comes last, above all others. No more than ten colours can be distinguished.
    const order = ids.map((_, i) => i).sort((a, b) => (ids[a] === chosen) - (ids[b] === chosen));
    return html`<svg class="cbir-map" data-do="map" viewBox="-2 -2 104 104" role="img" aria-label="${escape(caption)}">
      ${order.map((i) => html`<circle cx="${points[i][0]}" cy="${points[i][1]}" r="${ids[i] === chosen ? 2.6 : 1.3}"
        class="${ids[i] === chosen ? "chosen " : ""}${wanted >= 0 && labels[i] !== wanted ? "other" : ""}"
        style="--colour: var(--class-${count > 10 ? 0 : labels[i]})"/>`)}</svg>
      <div class="cbir-tip" hidden></div><p class="cbir-name">${escape(caption)}</p>`;
  }

  function drawTools() {
    const { heat_maps, positive = [], negative = [], used } = get("choice"), { maps = {} } = get("options");
    const n = positive.length + negative.length;
    const isNew = JSON.stringify([positive, negative]) !== JSON.stringify(used);
    draw(tools, html`<div role="group" aria-label="Heat maps"><span>Heat maps</span>
        ${Object.entries(maps).map(([kind, name]) => toggle("heat", kind, name, kind === heat_maps))}</div>
      ${n || isNew ? html`<button class="cbir-main" data-do="again" data-key="again" ${isNew ? "" : "disabled"}>
        Search again with ${n} ${n === 1 ? "mark" : "marks"}</button>`
        : html`<span>Mark good results with +, bad ones with −, then search again.</span>`}
      <details class="cbir-keep" ${tools.querySelector("[open]") ? "open" : ""}><summary data-key="keep">Keep or share</summary>
        <p>Put this call into the cell above to show the same again, also for a colleague who has this study.</p>
        <textarea readonly rows="6" aria-label="The call that shows the same">${escape(get("code"))}</textarea>
        <button data-do="copy" data-key="copy">Copy</button></details>`);
  }

  function drawPanels() {
    const shown = get("panels");
    draw(panels, shown.map(({ architecture, lines, results, note, overlays }, panel) => html`
      <section class="cbir-panel" aria-label="${escape(architecture)}">
        <h3>${escape(architecture)}</h3>${lines.map((line) => html`<p>${escape(line)}</p>`)}
        ${results.length ? "" : html`<p class="cbir-empty">No results: every picture that this search
          may return is marked, or none is of the classes it searches.</p>`}
        <div class="cbir-tiles" role="group" aria-label="Results of ${escape(architecture)}">
        ${results.map((result, index) => html`<figure data-id="${result.id}" data-query="${overlays?.[index][0] ?? ""}">
          <button class="cbir-picture" data-do="positive" data-id="${result.id}" data-key="${panel} ${result.id}"
            title="${escape(result.name)}" tabindex="${index ? -1 : 0}">
            ${picture(overlays?.[index][1] ?? result.image, `Rank ${result.rank}, ${result.label}, similarity ${result.similarity}`)}</button>
          ${Object.entries(SIGNS).map(([sign, text]) => html`<button class="${sign}" data-do="${sign}"
            data-id="${result.id}" tabindex="-1" aria-label="Mark as a ${sign} example">${text}</button>`)}
          <figcaption>${result.rank} · ${result.similarity}${result.copies.length
            ? html` <span title="Copies of this picture, which are not shown">+${result.copies.length}
              ${result.copies.length > 1 ? "copies" : "copy"}</span>` : ""}
            <b class="${{ true: "hit", false: "miss" }[result.is_hit] ?? ""}">${escape(result.label)}</b>
          </figcaption></figure>`)}</div>
        ${note ? html`<p class="cbir-note">${escape(note)} Point at a result to see its map of the query.</p>` : ""}
      </section>`).join(""));
    drawMarks();
  }

  /** Marks change often, and the results stay: only their frames are drawn again. */
  function drawMarks() {
    const choice = get("choice");
    for (const tile of panels.querySelectorAll("figure")) {
      const id = Number(tile.dataset.id);
      const sign = Object.keys(SIGNS).find((name) => choice[name]?.includes(id)) ?? "";
      tile.dataset.mark = sign;
      const [main, ...signs] = tile.querySelectorAll("button");
      main.setAttribute("aria-pressed", sign !== "");
      for (const button of signs) button.setAttribute("aria-pressed", button.className === sign);
    }
  }

  function drawStatus() {
    const isBusy = get("is_busy");
    el.setAttribute("aria-busy", isBusy);
    status.classList.toggle("cbir-problem", !isBusy && !get("panels").length);
    status.textContent = refused || get("status") || (isBusy
      ? "Waiting for the notebook’s kernel. If it has stopped, run the cell again." : "");
  }

  /** Mark a picture; the same mark again removes it. */
  function mark(sign, id) {
    const { positive, negative } = get("choice");
    const without = (ids) => ids.filter((one) => one !== id);
    const marks = { positive: without(positive), negative: without(negative) };
    if (sign && !get("choice")[sign].includes(id)) marks[sign].push(id);
    change(marks);
  }

  const actions = {
    query: (id) => change({ query: Number(id), ...NO_MARKS }),
    map: (_, event) => actions.query(get("points").ids[nearest(event)]),
    page: (step) => change({ page: get("choice").page + Number(step) }),
    tab: (name) => change({ is_map: name === "map" }),
    heat: (kind) => change({ heat_maps: kind }),
    positive: (id, event) => mark(event.shiftKey ? "negative" : "positive", Number(id)),
    negative: (id) => mark("negative", Number(id)),
    unmark: (id) => mark("", Number(id)),
    again: () => change({ used: [get("choice").positive, get("choice").negative] }),
    architecture(name) {
      const chosen = get("choice").architectures;
      const others = chosen.filter((one) => one !== name);
      if (others.length < chosen.length) return others.length ? change({ architectures: others }) : undefined;
      const { architectures } = get("options");
      change({ architectures: architectures.filter((one) => one === name || chosen.includes(one)) });
    },
    copy() {
      const field = tools.querySelector("textarea");
      field.select();
      navigator.clipboard?.writeText(field.value).then(() => say("Copied."), () => say("Press Ctrl+C or Cmd+C."));
    },
  };
  el.addEventListener("click", (event) => {
    const one = event.target.closest("[data-do]");
    if (one) actions[one.dataset.do](one.dataset.id, event);
  });
  el.addEventListener("change", ({ target }) => {
    if (target.type === "file") {
      const files = [...target.files];
      target.value = ""; // so that the same file can be chosen again
      return send(files);
    }
    const key = target.dataset.set, value = target.value;
    if (key === "study") change({ study: value }, {});
    else if (key === "k") change({ k: Math.min(Math.max(1, Math.round(value) || 1), Number(target.max)) });
    else if (key) change({ [key]: value, ...(key === "search" ? {} : { page: 0 }) });
  });

  // Arrow keys move along pictures, and + and − mark the one in focus.
  el.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.type === "number") event.target.blur(); // a change
    const group = event.target.closest(".cbir-grid, .cbir-tiles");
    if (!group || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = [...group.querySelectorAll("[tabindex='0'], .cbir-picture, .cbir-grid > button")];
    const columns = all.filter((one) => one.getBoundingClientRect().top === all[0].getBoundingClientRect().top).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const sign = { "+": "positive", "-": "negative", "−": "negative" }[event.key];
    if (step) all[all.indexOf(event.target) + step]?.focus();
    else if (sign && group.matches(".cbir-tiles")) mark(sign, Number(event.target.dataset.id));
    else return;
    event.preventDefault();
  });
  // Only one picture of a group is reached by Tab: the last one in focus.
  el.addEventListener("focusin", ({ target }) => {
    target.dataset.lmSuppressShortcuts = ""; // otherwise, JupyterLab takes keys for commands
    const group = target.closest(".cbir-grid, .cbir-tiles");
    if (!group || !target.hasAttribute("data-key")) return;
    for (const one of group.querySelectorAll("[tabindex='0']")) one.tabIndex = -1;
    target.tabIndex = 0;
  });

  // Pointing at a result shows its map of the query, and the same picture in other panels.
  function point(event) {
    const tile = event.type === "focusout" || event.type === "pointerout" ? null : event.target.closest("figure");
    for (const one of panels.querySelectorAll("figure"))
      one.classList.toggle("cbir-twin", !!tile && one !== tile && one.dataset.id === tile.dataset.id);
    const image = card.querySelector("img");
    if (image) image.src = tile?.dataset.query || get("query").image;
  }
  for (const kind of ["pointerover", "pointerout", "focusin", "focusout"]) panels.addEventListener(kind, point);
  /** The point on the map that is nearest to the pointer, as points hide one another. */
  function nearest({ clientX, clientY }) {
    const { points } = get("points"), box = chooser.querySelector(".cbir-map").getBoundingClientRect();
    const x = ((clientX - box.left) / box.width) * 104 - 2, y = ((clientY - box.top) / box.height) * 104 - 2;
    const distances = points.map(([left, top]) => Math.hypot(left - x, top - y));
    return distances.indexOf(Math.min(...distances));
  }
  chooser.addEventListener("pointermove", (event) => {
    const tip = chooser.querySelector(".cbir-tip");
    if (!tip) return;
    tip.hidden = !event.target.closest(".cbir-map");
    if (tip.hidden) return;
    const index = nearest(event), { sheet, columns, labels } = get("points");
    const box = chooser.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - 60)}px`;
    tip.style.top = `${event.clientY - box.top + 12}px`;
    tip.innerHTML = html`<i style="background: url(${sheet}) ${-48 * (index % columns)}px ${-48 * Math.floor(index / columns)}px"></i>
      ${escape(get("options").classes[labels[index]])}`;
  });

  // Pictures come from a file, a drop or the clipboard, and go to the kernel in parts.
  async function send(files) {
    const file = files.find(({ size }) => size);
    if (!file) return say("No picture found: drop or choose an image file.");
    const megabytes = Math.ceil(file.size / 2 ** 20);
    if (file.size > MOST_BYTES)
      return say(`${file.name} has ${megabytes} MB, but the explorer takes at most ${MOST_BYTES >> 20} MB: choose a smaller file.`);
    say("");
    model.set({ is_busy: true, status: `Sending ${file.name}, ${megabytes} MB …` });
    for (let start = 0; start < file.size; start += PART) {
      const part = await file.slice(start, start + PART).arrayBuffer();
      model.send({ name: file.name, is_first: start === 0, is_last: start + PART >= file.size }, undefined, [part]);
    }
  }
  el.addEventListener("paste", (event) => {
    if (event.target.matches("input[type=number], textarea")) return;
    event.preventDefault();
    send([...event.clipboardData.files]);
  });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
    el.addEventListener(kind, (event) => {
      event.preventDefault();
      el.classList.toggle("cbir-over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") send([...event.dataTransfer.files]);
    });

  const drawn = {
    options: [drawBar, drawChooser, drawTools], choice: [drawBar, drawCard, drawChooser, drawTools, drawMarks],
    query: [drawCard], marked: [drawCard], queries: [drawChooser], points: [drawChooser],
    panels: [drawPanels, drawStatus], code: [drawTools], status: [drawStatus], is_busy: [drawStatus],
  };
  for (const [trait, functions] of Object.entries(drawn))
    for (const one of functions) model.on(`change:${trait}`, one);
  for (const one of new Set(Object.values(drawn).flat())) one();
  return () => {
    for (const [trait, functions] of Object.entries(drawn))
      for (const one of functions) model.off(`change:${trait}`, one);
  };
}

export default { render };
