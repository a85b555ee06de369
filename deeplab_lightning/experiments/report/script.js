"use strict";
const byId = (id) => document.getElementById(id);
const parsed = (id) => JSON.parse(byId(id).textContent || "null");

// Tables: sorted by a click on a head, and saved as CSV.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const [index, header] of [...table.querySelectorAll("th")].entries()) {
    header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") === "descending";
      for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.children[index].dataset.value;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const sign = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? sign : -sign;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(order));
    });
  }
}

const download = (address, name) => {
  const link = document.createElement("a");
  [link.href, link.download] = [address, name];
  link.click();
};
const addButtons = (element, actions) => {
  const bar = document.createElement("div");
  bar.className = "save";
  for (const [text, action] of Object.entries(actions)) {
    const button = document.createElement("button");
    [button.type, button.textContent] = ["button", text];
    button.addEventListener("click", action);
    bar.append(button);
  }
  element.after(bar);
};
const csvOf = (table) => {
  const cell = (item) => {
    const known = item.dataset.value;
    let text = known === undefined || known === "" ? item.textContent.trim() : known;
    if (/^'*[=+@\t\r-]/.test(text) && isNaN(text)) text = `'${text}`;  // else a spreadsheet would run it
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [...table.rows].map((row) => [...row.cells].map(cell).join(",")).join("\n") + "\n";
};
for (const table of document.querySelectorAll("table[data-name]")) {
  const save = () => download(`data:text/csv;charset=utf-8,${encodeURIComponent(csvOf(table))}`, `${table.dataset.name}.csv`);
  addButtons(table.parentNode, { CSV: save });
}

// Charts: saved with the colours that they have now, since a file knows no variables of the page.
const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight"];
const svgOf = (figure) => {
  const shown = figure.querySelector("svg"), copy = shown.cloneNode(true);
  const [from, to] = [shown, copy].map((svg) => [svg, ...svg.querySelectorAll("*")]);
  from.forEach((element, index) => {
    const style = getComputedStyle(element);
    to[index].setAttribute("style", STYLES.map((name) => `${name}:${style.getPropertyValue(name)}`).join(";"));
  });
  const [, , width, height] = shown.getAttribute("viewBox").split(" ").map(Number);
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.setAttribute("style", `background:${getComputedStyle(document.body).backgroundColor};font:12px sans-serif`);
  const text = new XMLSerializer().serializeToString(copy);
  return { address: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`, width, height };
};
for (const figure of document.querySelectorAll("figure.chart")) {
  const name = figure.dataset.name;
  addButtons(figure, {
    SVG: () => download(svgOf(figure).address, `${name}.svg`),
    PNG: () => {
      const { address, width, height } = svgOf(figure), image = new Image();
      image.onload = () => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [2 * width, 2 * height];
        const context = canvas.getContext("2d");
        context.fillStyle = getComputedStyle(document.body).backgroundColor;
        context.fillRect(0, 0, canvas.width, canvas.height);
        context.drawImage(image, 0, 0, canvas.width, canvas.height);
        download(canvas.toDataURL("image/png"), `${name}.png`);
      };
      image.src = address;
    },
  });
}

// Confusion matrices: one of an experiment, or its difference from the first.
const confusion = parsed("counts");
if (confusion) {
  const { classes, experiments } = confusion, k = classes.length;
  const shares = experiments.map(({ counts }) => counts.map((row) => {
    const total = row.reduce((sum, count) => sum + count, 0);
    return row.map((count) => (total ? count / total : null));
  }));
  const views = experiments.map(({ name }, index) => ({ name, value: (t, p) => shares[index][t][p] }));
  for (const [index, { name }] of experiments.entries()) {
    const value = (t, p) => (shares[0][t][p] === null ? null : shares[index][t][p] - shares[0][t][p]);
    if (index) views.push({ name: `${name} - ${experiments[0].name}`, value, isDifference: true });
  }
  const make = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const short = (name) => (name.length <= 20 ? name : `${name.slice(0, 6)}…${name.slice(-12)}`);
  const draw = ({ name, value, isDifference }) => {
    const cell = k > 20 ? 18 : k > 8 ? 30 : 44, left = 140, top = 110;
    const [width, height] = [left + k * cell + 90, top + k * cell + 8];
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `confusion matrix: ${name}` });
    const labelled = (attributes, label) => {
      const text = make("text", attributes, short(label));
      text.append(make("title", {}, label));
      svg.append(text);
    };
    for (let t = 0; t < k; t++) {
      const y = top + t * cell;
      labelled({ x: left - 8, y: y + cell / 2 + 4, "text-anchor": "end" }, classes[t]);
      const x = left + t * cell + cell / 2 + 4;
      labelled({ transform: `translate(${x} ${top - 8}) rotate(-50)` }, classes[t]);
      for (let p = 0; p < k; p++) {
        const share = value(t, p), isGood = share > 0 === (t === p);
        const strength = share === null ? 0 : isDifference ? Math.min(Math.abs(share) / 0.15, 1) * 0.6 : share * 0.75;
        const hue = isDifference ? (isGood ? "--good" : "--bad") : "--heat";
        const rect = make("rect", { x: left + p * cell, y, width: cell - 1, height: cell - 1, class: "cell",
          style: `fill: rgb(var(${hue}) / ${strength.toFixed(3)}); stroke: var(--line)` });
        const figure = share === null ? "no pixel" : `${isDifference && share > 0 ? "+" : ""}${(100 * share).toFixed(1)}${isDifference ? " points" : " %"}`;
        rect.append(make("title", {}, `${classes[t]} predicted as ${classes[p]}: ${figure}`));
        svg.append(rect);
        const number = (100 * (share || 0)).toFixed(0);
        if (k <= 20 && share !== null && number !== "0" && number !== "-0") {
          const place = { x: left + p * cell + cell / 2, y: y + cell / 2 + 4, "text-anchor": "middle", "pointer-events": "none" };
          svg.append(make("text", place, isDifference && share > 0 ? `+${number}` : number));
        }
      }
    }
    byId("confusion").replaceChildren(svg);
  };
  for (const [index, view] of views.entries()) {
    const label = document.createElement("label"), input = document.createElement("input");
    [input.type, input.name, input.value, input.checked] = ["radio", "matrix", view.name, index === 0];
    input.addEventListener("change", () => draw(view));
    label.append(input, view.name);
    byId("matrices").append(label);
  }
  draw(views[0]);
}

// Images: an order, a search, and a view.
const images = parsed("images") || [];
if (images.length) {
  const radios = [...document.querySelectorAll("input[name=view]")];
  const highest = (key) => (a, b) => (b[key] ?? -1) - (a[key] ?? -1);
  const orders = new Map([["lowest mIoU first", { keep: () => true, order: (a, b) => (a.mean ?? 2) - (b.mean ?? 2) }]]);
  if (images.some((image) => image.spread > 0)) {
    orders.set("largest difference between experiments first", { keep: () => true, order: highest("spread") });
  }
  for (const name of new Set(images.flatMap((image) => Object.keys(image.classes)))) {
    orders.set(`lowest IoU of ${name} first`, {
      keep: (image) => name in image.classes, order: (a, b) => a.classes[name] - b.classes[name],
    });
  }
  for (const name of orders.keys()) byId("order").add(new Option(name));
  let place = 0, chosen = images;
  const show = () => {
    const image = chosen[place], isFound = image !== undefined;
    const view = radios.find((radio) => radio.checked).value;
    byId("shown").hidden = !isFound;
    byId("place").textContent = isFound ? `${place + 1} of ${chosen.length}: ${image.name}` : "no such image on this page";
    byId("miou").textContent = isFound ? image.miou : "";
    if (!isFound) return;
    byId("shown").src = image.views[view];
    byId("shown").alt = `${image.name}: ${view}`;
  };
  const choose = () => {
    const { keep, order } = orders.get(byId("order").value), part = byId("search").value.toLowerCase();
    chosen = images.filter((image) => keep(image) && image.name.toLowerCase().includes(part)).sort(order);
    place = 0;
    show();
  };
  const step = (by) => { place = (place + by + chosen.length) % Math.max(chosen.length, 1); show(); };
  const turn = (by) => {
    const now = radios.findIndex((radio) => radio.checked);
    radios[(now + by + radios.length) % radios.length].checked = true;
    show();
  };
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("order").addEventListener("change", choose);
  byId("search").addEventListener("input", choose);
  for (const radio of radios) radio.addEventListener("change", show);
  byId("gallery").addEventListener("keydown", (event) => {
    if (["view", "search", "order"].includes(event.target.name || event.target.id)) return;  // they use the keys themselves
    const moves = { ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), ArrowUp: () => step(-1), ArrowDown: () => step(1) };
    if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
  });
  choose();
}
