// The explorer of test items. All text goes into the page as text, never as markup.
"use strict";
(() => {
  const PAGE = 20; // items that are shown at a time
  const data = JSON.parse(document.getElementById("items").textContent);
  const box = document.getElementById("explorer");
  const form = box.querySelector("form");
  const list = box.querySelector(".items");
  const count = box.querySelector(".count");
  const more = box.querySelector(".more");
  const weak = data.models.find((m) => m.role === "weak");
  const students = data.models.filter((m) => m.role === "student");
  const ceilings = data.models.filter((m) => m.role === "ceiling");
  const label = (answer) => (typeof answer === "number" ? data.classes[answer] : answer);
  const haystack = data.ids.map((id, i) => {
    const gold = data.gold === null ? "" : label(data.gold[i]);
    return `${id}\n${data.texts === null ? "" : data.texts[i]}\n${gold}`.toLowerCase();
  });
  let shown = [];

  const FILTERS = {
    all: () => true,
    weak: (i) => !weak.right[i],
    student: (i, student) => !student.right[i],
    gained: (i, student) => !weak.right[i] && student.right[i],
    lost: (i, student) => weak.right[i] && !student.right[i],
  };

  function element(tag, name, text) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function prediction(title, model, i) {
    const row = element("li", model.right[i] ? "right" : "wrong");
    row.append(element("span", "who", title));
    const what = element("bdi", "what", model.chosen === null ? "" : label(model.chosen[i]));
    row.append(what);
    const sure = model.confidence === null ? "" : model.confidence[i].toFixed(2);
    row.append(element("span", "sure", sure));
    row.append(element("span", "verdict", model.right[i] ? "right" : "wrong"));
    return row;
  }

  function item(i, student) {
    const node = element("li", "item");
    const text = element("div", "content");
    if (data.texts !== null) {
      const body = element("p", "body", data.texts[i]);
      body.dir = "auto";
      text.append(body);
    }
    const meta = element("p", "meta");
    if (data.gold !== null) {
      meta.append(element("span", "", "true: "), element("bdi", "gold", label(data.gold[i])), " · ");
    }
    meta.append(element("bdi", "id", data.ids[i]));
    text.append(meta);
    const answers = element("ul", "answers");
    answers.append(prediction("supervisor", weak, i));
    if (student) answers.append(prediction("student", student, i));
    if (ceilings.length) answers.append(prediction("ceiling", ceilings[ceilings.length - 1], i));
    node.append(text, answers);
    return node;
  }

  function chosenStudent() {
    return students[Number(form.elements.student.value)] || null;
  }

  function sorted(rows, student) {
    const [who, direction] = form.elements.sort.value.split("-");
    const model = who === "weak" ? weak : student;
    if (who === "order" || !model || model.confidence === null) return rows;
    const sign = direction === "down" ? -1 : 1;
    return rows.sort((a, b) => sign * (model.confidence[a] - model.confidence[b]) || a - b);
  }

  function append() {
    const student = chosenStudent();
    const start = list.childElementCount;
    const part = document.createDocumentFragment();
    for (const i of shown.slice(start, start + PAGE)) part.append(item(i, student));
    list.append(part);
    more.hidden = list.childElementCount >= shown.length;
  }

  function update() {
    const student = chosenStudent();
    const words = form.elements.query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = FILTERS[form.elements.show.value];
    const rows = [];
    for (let i = 0; i < data.ids.length; i += 1) {
      if (!student && form.elements.show.value !== "all" && form.elements.show.value !== "weak") continue;
      if (keep(i, student) && words.every((word) => haystack[i].includes(word))) rows.push(i);
    }
    shown = sorted(rows, student);
    count.textContent = `${shown.length} of ${data.ids.length} items`;
    list.replaceChildren();
    append();
  }

  students.forEach((student, k) => {
    const option = element("option", "", student.name);
    option.value = String(k);
    form.elements.student.append(option);
  });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", append);
  update();
})();
