// One prompt, several models, side by side or blind. What models write only ever becomes text, never markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const kept = (() => {
    try { return JSON.parse(sessionStorage.getItem("compare")) || {}; } catch { return {}; }
  })();
  const state = { mode: "side", prompt: "", preset: "", system: null, temperature: "0", tokens: "512", key: "", chosen: null,
    shown: [], pair: null, voted: "", ...kept };
  let about = { title: "", system: "", models: [], presets: [], voting: false };
  let running = null;

  const save = () => {
    try { sessionStorage.setItem("compare", JSON.stringify(state)); } catch { /* full or forbidden: nothing is kept */ }
  };
  const element = (name, text, classes) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (classes) made.className = classes;
    return made;
  };
  const headers = () => ({ "content-type": "application/json", ...(state.key && { authorization: `Bearer ${state.key}` }) });
  const say = (text) => { $("message").textContent = text; };

  async function call(path, options) {
    const answer = await fetch(path, { headers: headers(), ...options });
    if (answer.ok) return answer;
    if (answer.status === 401) needKey();
    let told = `the server answered ${answer.status}`;
    try { told = (await answer.json()).error.message; } catch { /* no JSON */ }
    throw new Error(told);
  }

  function needKey() {
    $("key-row").hidden = false;
    document.querySelector("details").open = true;
    $("key").focus();
  }

  async function load() {
    try {
      about = await (await call("/compare/data")).json();
    } catch (error) {
      say(error.message);
      return;
    }
    say("");
    document.title = about.title;
    $("title").textContent = about.title;
    state.system ??= about.system;
    $("system").value = state.system;
    $("blind").hidden = !about.voting || about.models.length < 2;
    if ($("blind").hidden) state.mode = "side";
    const known = (state.chosen || about.models).filter((name) => about.models.includes(name));
    state.chosen = known.length ? known : about.models;
    $("models").replaceChildren($("models").firstElementChild, ...about.models.map((name) => {
      const label = element("label");
      const box = element("input");
      Object.assign(box, { type: "checkbox", value: name, checked: state.chosen.includes(name) });
      box.addEventListener("change", () => {
        state.chosen = [...$("models").querySelectorAll("input:checked")].map((found) => found.value);
        save();
      });
      label.append(box, name);
      return label;
    }));
    $("presets-row").hidden = !about.presets.length;
    $("preset").replaceChildren($("preset").firstElementChild, ...about.presets.map((preset, place) => {
      const option = element("option", short(lastWords(preset.messages)));
      option.value = String(place);
      return option;
    }));
    $("preset").value = state.preset;
    show();
    if (about.voting) summary(await (await call("/compare/votes")).json());
  }

  const lastWords = (messages) => {
    const last = messages.filter((message) => message.role === "user").at(-1);
    return typeof last?.content === "string" ? last.content : "";
  };
  const short = (text) => (text.length > 90 ? `${text.slice(0, 88)}…` : text);

  function messages() {
    const preset = about.presets[state.preset];
    // A preset that was not changed keeps its turns; a changed one is a question of its own.
    if (preset && lastWords(preset.messages) === state.prompt && state.system === about.system) return preset.messages;
    const system = state.system ? [{ role: "system", content: state.system }] : [];
    return [...system, { role: "user", content: state.prompt }];
  }

  async function ask(event) {
    event?.preventDefault();
    if (running) return;
    if (!state.prompt.trim()) { say("write a prompt first"); $("prompt").focus(); return; }
    let models = about.models.filter((name) => state.chosen.includes(name));
    if (state.mode === "blind") {
      if (models.length < 2) { say("choose at least two models"); return; }
      models = shuffled(models).slice(0, 2);
    }
    if (!models.length) { say("choose a model"); return; }
    say("");
    running = new AbortController();
    state.pair = state.mode === "blind" ? models : null;
    state.voted = "";
    state.asked = { prompt: state.prompt, preset: state.preset };
    state.shown = models.map((name) => ({ name, tokens: [], speed: "", error: "" }));
    const asked = messages();
    show();
    await Promise.all(state.shown.map((answer) => stream(answer, asked, running.signal)));
    running = null;
    show();
    save();
    if (!$("voting").hidden) $("voting").querySelector("button").focus();
  }

  function shuffled(names) {
    const left = [...names];
    const drawn = [];
    while (left.length) {
      const [word] = crypto.getRandomValues(new Uint32Array(1));
      drawn.push(...left.splice(word % left.length, 1));
    }
    return drawn;
  }

  async function stream(answer, asked, signal) {
    const started = performance.now();
    let first = null;
    answer.busy = true;
    draw(answer);
    try {
      const body = { model: answer.name, messages: asked, stream: true, temperature: Number(state.temperature) || 0,
        max_tokens: Number(state.tokens) || 512, logprobs: true };
      const reply = await call("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
          const event = JSON.parse(line.slice(6));
          if (event.error) throw new Error(event.error.message);
          const choice = event.choices?.[0];
          // What a model thinks before it answers comes by another name.
          const text = choice?.delta?.reasoning_content || choice?.delta?.content;
          if (!text) continue;
          first ??= performance.now() - started;
          add(answer, text, choice.logprobs?.content || []);
        }
        const seconds = (performance.now() - started - first) / 1000;
        answer.speed = `first token after ${(first / 1000).toFixed(2)} s`
          + (answer.tokens.length > 1 && seconds > 0.05 ? `, then ${((answer.tokens.length - 1) / seconds).toFixed(0)} tokens a second` : "");
        draw(answer);
      }
    } catch (error) {
      answer.error = error.name === "AbortError" ? "stopped" : error.message;
    }
    answer.busy = false;
    draw(answer);
    save();
  }

  // A server that tells no probabilities, or of other pieces than the text has, gives plain text.
  function add(answer, text, told) {
    if (told.map((piece) => piece.token).join("") === text) {
      answer.tokens.push(...told.map((piece) => [piece.token, Math.exp(piece.logprob)]));
    } else {
      answer.tokens.push([text, told.length === 1 ? Math.exp(told[0].logprob) : null]);
    }
  }

  const shade = (p) => (p === null || p >= 0.9 ? "t" : p >= 0.5 ? "t s1" : p >= 0.2 ? "t s2" : "t s3");
  const hidden = () => state.pair !== null && !state.voted;

  function card(answer, place) {
    const made = element("article");
    made.append(element("h2"), element("div", undefined, "text"), element("p", undefined, "speed"));
    made.id = `answer-${place}`;
    return made;
  }

  function draw(answer) {
    const place = state.shown.indexOf(answer);
    const found = $(`answer-${place}`);
    if (!found) return;
    const [title, text, speed] = found.children;
    const letter = "AB"[place];
    title.textContent = hidden() ? `Answer ${letter}` : state.pair ? `${letter}: ${answer.name}` : answer.name;
    text.setAttribute("aria-busy", String(Boolean(answer.busy)));
    while (text.childElementCount > answer.tokens.length) text.lastChild.remove();
    for (const [token, p] of answer.tokens.slice(text.childElementCount)) {
      const piece = element("span", token, hidden() ? "t" : shade(p));
      if (p !== null && !hidden()) piece.title = `${(100 * p).toFixed(p > 0.995 || p < 0.001 ? 2 : 0)} %`;
      text.append(piece);
    }
    // Speeds tell which model it is.
    speed.textContent = [hidden() ? "" : answer.speed, answer.error].filter(Boolean).join("; ");
  }

  function show() {
    for (const mode of ["side", "blind"]) {
      $(mode).setAttribute("aria-pressed", String(state.mode === mode));
      $(mode).disabled = running !== null;
    }
    $("answers").replaceChildren(...state.shown.map(card));
    state.shown.forEach(draw);
    $("send").disabled = running !== null;
    $("stop").disabled = running === null;
    $("legend").hidden = hidden() || !state.shown.length;
    const preset = about.presets[state.asked?.preset];
    const right = preset && lastWords(preset.messages) === state.asked.prompt ? preset.reference : null;
    $("reference").hidden = !right;
    $("reference").textContent = right ? `The right answer: ${right}` : "";
    const complete = state.pair !== null && running === null && state.shown.every((answer) => !answer.error && !answer.busy);
    $("voting").hidden = !complete;
    for (const button of $("voting").querySelectorAll("button")) button.disabled = Boolean(state.voted);
    $("revealed").textContent = state.voted ? `Thank you. A was ${state.pair[0]}, B was ${state.pair[1]}.` : "";
  }

  async function vote(choice) {
    if (state.voted || $("voting").hidden) return;
    const answers = state.shown.map((answer) => answer.tokens.map(([token]) => token).join(""));
    try {
      const body = JSON.stringify({ models: state.pair, choice, prompt: state.asked.prompt, answers });
      const told = await (await call("/compare/votes", { method: "POST", body })).json();
      state.voted = choice;
      save();
      show();
      summary(told);
      $("prompt").focus();
    } catch (error) {
      say(`the vote was not kept: ${error.message}`);
    }
  }

  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  function summary(rows) {
    $("results").hidden = !rows.length;
    $("rows").replaceChildren(...rows.map((row) => {
      const share = row.share === null ? "" : `${percent(row.share)} [${percent(row.low)}, ${percent(row.high)}]`;
      const cells = [row.models.join(" : "), row.votes, row.wins.join(" : "), row.ties, row.neither, share,
        row.p === null ? "" : row.p.toPrecision(2)];
      const line = element("tr");
      line.append(...cells.map((cell) => element("td", String(cell))));
      return line;
    }));
  }

  for (const name of ["prompt", "system", "temperature", "tokens", "key"]) {
    $(name).value = state[name] ?? "";
    $(name).addEventListener("input", () => { state[name] = $(name).value; save(); });
  }
  $("key").addEventListener("change", load);
  $("preset").addEventListener("change", () => {
    state.preset = $("preset").value;
    if (state.preset !== "") state.prompt = $("prompt").value = lastWords(about.presets[state.preset].messages);
    save();
  });
  for (const mode of ["side", "blind"]) {
    $(mode).addEventListener("click", () => {
      if (state.mode === mode) return;
      Object.assign(state, { mode, shown: [], pair: null, voted: "" });
      save();
      show();
    });
  }
  $("ask").addEventListener("submit", ask);
  $("stop").addEventListener("click", () => running?.abort());
  for (const button of $("voting").querySelectorAll("button")) button.addEventListener("click", () => vote(button.dataset.choice));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(event);
    else if (event.key === "Escape") running?.abort();
    else if (!/^(TEXTAREA|INPUT|SELECT)$/.test(event.target.tagName) && "1234".includes(event.key) && event.key) {
      vote(["first", "second", "tie", "neither"][Number(event.key) - 1]);
    }
  });
  // What a reload cut off is no answer to vote on.
  for (const answer of state.shown) if (answer.busy) Object.assign(answer, { busy: false, error: "cut off" });
  show();
  load();
})();
