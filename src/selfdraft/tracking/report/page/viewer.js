"use strict";
// The decode viewer: shows one turn of one contender, and one of its steps. All texts are set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const at = (id) => document.getElementById(id);
  const marks = { "\n": "⏎", "\t": "⇥", "\r": "␍" };
  const visible = (text) => text.replace(/[\n\t\r]/g, (letter) => marks[letter]);
  const percent = (chance) => (chance == null ? "" : chance >= 0.0995 ? (100 * chance).toFixed(0) + " %" : (100 * chance).toPrecision(2) + " %");
  const make = (name, attributes = {}, text = null) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  };
  const draw = (name, attributes = {}, text = null) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  };
  let contender, turn, steps, current = 0;

  const spell = (id) => data.vocabularies[contender.vocabulary][id] ?? "[" + id + "]";
  const parentOf = (step, node) => (step.p ? step.p[node] : node - 1);
  const sourceOf = (step, node) => (step.n ? step.n[node] : step.s) || "–";
  const stateOf = (step, node) => (step.a.includes(node) ? "accepted" : (step.r || []).includes(node) ? "probe" : "rejected");

  // The tokens that a step emitted: [id, kind, source, probability].
  const emitted = (step) => {
    const found = step.a.map((node, i) => [step.t[node], step.k[i], sourceOf(step, node), step.c ? step.c[node] : null]);
    if (step.b !== null) found.push([step.b, step.k[step.k.length - 1], "target", step.c ? step.c[step.t.length] : null]);
    return found;
  };

  const showTurn = () => {
    turn = contender.turns[at("v-turn").selectedIndex];
    let place = 0;
    steps = turn.steps.map((step) => {
      const begun = place;
      place += step.k.length;
      return { ...step, begun };
    });
    at("v-prompt").textContent = turn.prompt;
    at("v-facts").textContent = `${turn.tokens} tokens in ${turn.forwards} forwards, ${turn.verdict}` +
      (turn.cut ? `; the first ${steps.length} steps are shown` : "");
    const answer = at("v-answer");
    answer.replaceChildren(...steps.map((step, number) => {
      const option = make("span", { role: "option", id: "v-s" + number, class: "step", "aria-selected": "false" });
      const tokens = emitted(step);
      option.setAttribute("aria-label", `step ${number + 1}: ` + tokens.map(([id, kind]) => `${visible(spell(id))} ${kind}`).join(", "));
      for (const [id, kind, source, chance] of tokens) {
        const text = spell(id);
        const token = make("span", { class: "token " + kind, "aria-hidden": "true" }, text.includes("\n") ? text.replace(/\n/g, "⏎\n") : text);
        token.title = `step ${number + 1}, ${kind}, from ${source}` + (chance == null ? "" : `, probability ${percent(chance)}`);
        option.append(token);
      }
      option.addEventListener("click", () => showStep(number));
      return option;
    }));
    showStep(0);
  };

  const showStep = (number) => {
    current = Math.max(0, Math.min(number, steps.length - 1));
    const step = steps[current], answer = at("v-answer");
    [...answer.children].forEach((option, place) => option.setAttribute("aria-selected", place === current));
    answer.setAttribute("aria-activedescendant", "v-s" + current);
    const chosen = answer.children[current];
    if (chosen.offsetTop < answer.scrollTop || chosen.offsetTop + chosen.offsetHeight > answer.scrollTop + answer.clientHeight)
      answer.scrollTop = chosen.offsetTop - answer.clientHeight / 2;
    const candidates = step.t.length - (step.r || []).length;
    at("v-step").textContent = `Step ${current + 1} of ${steps.length}: ` +
      (candidates ? `${candidates} drafted (${step.s || "no source"}), ${step.a.length} accepted, ` : "nothing drafted, ") + `${step.k.length} written`;
    at("v-back").disabled = current === 0;
    at("v-next").disabled = current === steps.length - 1;
    at("v-tree").replaceChildren(treeOf(step));
    at("v-block").replaceChildren(...blockOf(step));
    at("v-table").replaceChildren(tableOf(step));
  };

  const rootOf = () => (current ? emitted(steps[current - 1]).at(-1)[0] : turn.root);

  // Nodes of the drawing: the root, the drafted nodes, and the target's own token below the last accepted one.
  const nodesOf = (step) => {
    const nodes = [{ id: rootOf(), parent: null, state: "root", says: "last token" }];
    step.t.forEach((id, node) => nodes.push({ id, parent: parentOf(step, node) + 1, state: stateOf(step, node), source: sourceOf(step, node), chance: step.c?.[node] }));
    if (step.b !== null) {
      const last = step.a.length ? step.a.at(-1) + 1 : 0;
      const kind = step.k.at(-1);
      nodes.push({ id: step.b, parent: last, state: kind === "corrected" ? "corrected" : "own", says: kind, source: "target", chance: step.c?.[step.t.length] });
    }
    nodes.forEach((node, i) => { node.depth = node.parent === null ? 0 : nodes[node.parent].depth + 1; node.children = []; if (node.parent !== null) nodes[node.parent].children.push(i); });
    return nodes;
  };

  const treeOf = (step) => {
    const nodes = nodesOf(step), wide = 104, high = 30;
    let row = 0;
    const good = (node) => ["accepted", "own", "corrected"].includes(node.state);
    const place = (i) => {
      const node = nodes[i], order = [...node.children].sort((a, b) => good(nodes[b]) - good(nodes[a]));
      node.x = 4 + node.depth * (wide + 18);
      node.y = 4 + row * high;
      order.forEach((child, n) => { if (n) row += 1; place(child); });
    };
    place(0);
    const width = Math.max(...nodes.map((node) => node.x)) + wide + 8, height = 8 + (row + 1) * high;
    const accepted = step.a.map((node) => spell(step.t[node])).join("");
    const svg = draw("svg", { class: "tree", width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `Tree of ${step.t.length} drafted tokens; accepted: ${accepted ? visible(accepted) : "none"}. The table below lists them.` });
    for (const node of nodes) {
      if (node.parent === null) continue;
      const from = nodes[node.parent], x = from.x + wide, y = from.y + 12, to = node.y + 12;
      svg.append(draw("path", { class: "edge" + (good(node) ? " on" : ""), d: `M${x} ${y}C${x + 10} ${y} ${node.x - 10} ${to} ${node.x} ${to}` }));
    }
    for (const node of nodes) {
      const group = draw("g", { class: node.state, transform: `translate(${node.x} ${node.y})` });
      const text = visible(spell(node.id));
      group.append(draw("title", {}, `${text} (id ${node.id}): ${node.says || node.state}` + (node.source ? `, from ${node.source}` : "") + (node.chance == null ? "" : `, probability ${percent(node.chance)}`)));
      group.append(draw("rect", { width: wide, height: 24, rx: 4 }));
      const label = node.chance == null ? "" : percent(node.chance), room = label ? 8 : 13;
      group.append(draw("text", { x: 6, y: 16 }, text.length > room ? text.slice(0, room - 1) + "…" : text));
      if (label) group.append(draw("text", { x: wide - 5, y: 16, "text-anchor": "end", style: "font-size:10px" }, label));
      svg.append(group);
    }
    return svg;
  };

  // The passes over the block that this step verified or refined, aligned by their place in the answer.
  const blockOf = (step) => {
    const own = turn.iterates.find((pass) => pass[1] === step.begun);
    if (!own) return [];
    const passes = turn.iterates.filter((pass) => pass[0] === own[0]);
    const text = steps.flatMap((each) => emitted(each).map(([id]) => id));
    const first = Math.min(...passes.map((pass) => pass[1])), end = Math.max(...passes.map((pass) => pass[1] + pass[2].length));
    const table = make("table", { class: "block" }), head = make("tr");
    head.append(make("th", { scope: "col" }, "place"));
    for (let i = first; i < end; i++) head.append(make("th", { scope: "col" }, String(i + 1)));
    table.append(make("thead"), make("tbody"));
    table.tHead.append(head);
    passes.forEach((pass, number) => {
      const row = make("tr");
      row.append(make("th", { scope: "row" }, `pass ${number + 1}` + (pass[1] === step.begun ? " ◂" : "")));
      for (let i = first; i < end; i++) {
        const id = pass[2][i - pass[1]];
        if (i < pass[1] || id === undefined) { row.append(make("td")); continue; }
        const state = i >= text.length ? "unknown" : text[i] === id ? "right" : "wrong";
        const cell = make("td", { class: state }, visible(spell(id)));
        cell.title = state === "unknown" ? "the answer does not reach this place" : state;
        row.append(cell);
      }
      table.tBodies[0].append(row);
    });
    const scroll = make("div", { class: "scroll", role: "region", "aria-label": "Iterates of the block", tabindex: "0" });
    scroll.append(table);
    return [make("h3", {}, `Block ${own[0]}: what each pass was given`),
      make("p", { class: "quiet" }, "Green tokens are those of the answer; struck ones are not. ◂ marks the passes of this step."), scroll];
  };

  const tableOf = (step) => {
    const table = make("table"), head = make("tr");
    ["token", "id", "after", "depth", "state", "source", "probability"].forEach((name) => head.append(make("th", { scope: "col" }, name)));
    table.append(make("thead"), make("tbody"));
    table.tHead.append(head);
    const nodes = nodesOf(step);
    nodes.slice(1).forEach((node) => {
      const row = make("tr"), parent = nodes[node.parent];
      [visible(spell(node.id)), node.id, visible(spell(parent.id)), node.depth, node.says || node.state, node.source, percent(node.chance)]
        .forEach((text) => row.append(make("td", {}, String(text))));
      table.tBodies[0].append(row);
    });
    return table;
  };

  const showContender = () => {
    contender = data.contenders[at("v-contender").selectedIndex];
    const kept = turn ? contender.turns.findIndex((each) => each.id === turn.id && each.turn === turn.turn) : 0;
    at("v-turn").replaceChildren(...contender.turns.map((each) => make("option", {}, `${each.family} · ${each.id}` + (each.turn > 1 ? ` (turn ${each.turn})` : ""))));
    at("v-turn").selectedIndex = Math.max(kept, 0);
    showTurn();
  };

  const moves = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
  at("v-answer").addEventListener("keydown", (event) => {
    if (!(event.key in moves) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    showStep(current + moves[event.key]);
  });
  at("v-back").addEventListener("click", () => showStep(current - 1));
  at("v-next").addEventListener("click", () => showStep(current + 1));
  at("v-contender").append(...data.contenders.map((each) => make("option", {}, each.label)));
  at("v-contender").addEventListener("change", showContender);
  at("v-turn").addEventListener("change", showTurn);
  showContender();
})();
