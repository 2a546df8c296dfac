"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const FILTERS = ["q", "workload", "family", "status"];
  const AXES = ["panel", "x", "y"];

  // --- The page's state, which is also its address ---------------------------------

  const state = {};

  function readAddress() {
    const address = new URLSearchParams(location.hash.slice(1));
    for (const name of FILTERS) choose(byId(`filter-${name}`), address.get(name) ?? "");
    for (const name of AXES) choose(byId(`plot-${name}`), address.get(name));
    const [key, direction] = (address.get("sort") ?? "").split(".");
    state.sort = document.querySelector(`#cells [data-sort="${CSS.escape(key)}"]`) ? key : "";
    state.direction = direction === "desc" ? "desc" : "asc";
  }

  function writeAddress() {
    const address = new URLSearchParams();
    for (const name of FILTERS) if (byId(`filter-${name}`)?.value) address.set(name, byId(`filter-${name}`).value);
    for (const name of AXES) if (byId(`plot-${name}`)?.selectedIndex > 0) address.set(name, byId(`plot-${name}`).value);
    if (state.sort) address.set("sort", `${state.sort}.${state.direction}`);
    const hash = address.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  /** Sets a control to a value, or to its first choice where it has no such choice. */
  function choose(control, value) {
    if (!control) return;
    if (control.tagName !== "SELECT") control.value = value ?? "";
    else control.selectedIndex = Math.max(0, [...control.options].findIndex((option) => option.value === value));
  }

  // --- The table -------------------------------------------------------------------

  const table = byId("cells");
  /** Each cell: its row and the rows of reason and details that belong to it. */
  const cells = table ? [...table.querySelectorAll("tr.cell")].map((row) => ({ row, rows: belonging(row) })) : [];

  function belonging(row) {
    const rows = [row];
    for (let next = row.nextElementSibling; next && !next.matches(".cell, .group"); next = next.nextElementSibling) {
      rows.push(next);
    }
    return rows;
  }

  function filterRows() {
    const words = byId("filter-q").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [workload, family, status] = FILTERS.slice(1).map((name) => byId(`filter-${name}`).value);
    let shown = 0;
    for (const { row, rows } of cells) {
      const data = row.dataset;
      const fits =
        words.every((word) => data.words.includes(word)) &&
        (!workload || data.workload === workload) &&
        (!family || data.families.includes(`|${family}|`)) &&
        (!status || data.status === status);
      for (const part of rows) part.hidden = !fits;
      shown += fits;
    }
    for (const body of table.tBodies) body.hidden = !body.querySelector("tr.cell:not([hidden])");
    byId("shown").value = shown === cells.length ? `${shown} cells` : `${shown} of ${cells.length} cells`;
    byId("nothing").hidden = shown > 0;
  }

  const TEXTS = new Set(["variant", "status", "artifact"]);

  function compare(one, other) {
    const [a, b] = [one.row.dataset[state.sort], other.row.dataset[state.sort]];
    if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1); // what is missing comes last either way
    const order = TEXTS.has(state.sort) ? a.localeCompare(b, undefined, { numeric: true }) : Number(a) - Number(b);
    return state.direction === "desc" ? -order : order;
  }

  /** Sorts within each workload and target: across them, ratios and sizes mean nothing. */
  function sortRows() {
    const inOrder = (one, other) => one.row.dataset.index - other.row.dataset.index;
    const sorted = [...cells].sort((one, other) => (state.sort ? compare(one, other) : 0) || inOrder(one, other));
    for (const { row, rows } of sorted) row.parentElement.append(...rows);
    for (const button of table.querySelectorAll("[data-sort]")) {
      const active = button.dataset.sort === state.sort;
      const order = state.direction === "desc" ? "descending" : "ascending";
      button.parentElement.setAttribute("aria-sort", active ? order : "none");
    }
  }

  /** First the column's natural direction, then the other, then the page's own order. */
  function sortBy(button) {
    const { sort, first } = button.dataset;
    if (state.sort !== sort) Object.assign(state, { sort, direction: first });
    else if (state.direction === first) state.direction = first === "asc" ? "desc" : "asc";
    else state.sort = "";
    sortRows();
    writeAddress();
  }

  function open(row, wanted) {
    const button = row.querySelector(".more");
    const details = byId(button.getAttribute("aria-controls"));
    const opened = wanted ?? !details.classList.contains("open");
    details.classList.toggle("open", opened);
    row.classList.toggle("open", opened);
    button.setAttribute("aria-expanded", String(opened));
  }

  function find(index) {
    const row = byId(`cell-${index}`);
    if (!row) return;
    if (row.hidden) {
      byId("filters").reset();
      filterRows();
      writeAddress();
    }
    table.querySelectorAll(".found").forEach((old) => old.classList.remove("found"));
    row.classList.add("found");
    row.scrollIntoView({ block: "center" });
    row.querySelector(".more").focus({ preventScroll: true });
  }

  // --- The plot --------------------------------------------------------------------

  const data = JSON.parse(byId("plot-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tip = byId("tip");
  let drawing = 0;
  let view = null;

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    return {
      background: "transparent",
      font: style.getPropertyValue("--sans"),
      range: { category: [1, 2, 3, 4, 5, 6, 7].map((number) => colour(`c${number}`)) },
      view: { stroke: null },
      axis: {
        domainColor: colour("faint"),
        gridColor: colour("line"),
        labelColor: colour("soft"),
        labelFontSize: 12,
        tickColor: colour("faint"),
        titleColor: colour("ink"),
        titleFontSize: 12.5,
        titleFontWeight: 500,
        titlePadding: 10,
      },
      style: {
        front: { color: colour("soft"), strokeDash: [4, 3], strokeWidth: 1.5 },
        whisker: { color: colour("faint"), strokeWidth: 1, opacity: 0.7 },
        greyed: { color: colour("faint") },
        control: { color: colour("soft") },
        reference: { color: colour("ink") },
        name: { color: colour("ink"), fontSize: 12 },
      },
    };
  }

  /** The points of the chosen panel, with the chosen axes' values as x and y. */
  function chosenPoints(panel, x, y) {
    return data.points
      .filter((point) => point.panel === panel && point.x[x]?.[0] > 0 && point.y[y])
      .map((point) => ({
        cell: point.cell,
        label: point.label,
        family: point.family,
        kind: point.kind,
        reference: point.reference,
        text: point.text,
        front: point.front.includes(x),
        name: "", // until there is a place for it
        x: point.x[x][0],
        x_low: Math.max(point.x[x][1], point.x[x][0] / 100), // an interval that reaches 0 has no place on a log scale
        x_high: point.x[x][2],
        y: point.y[y][0],
        y_low: point.y[y][1],
        y_high: point.y[y][2],
        ...PLACES[0],
      }));
  }

  // Where a name may stand beside its point, best first.
  const PLACES = [[9, -9], [9, 11], [-9, -9], [-9, 11], [9, -24], [-9, -24], [9, 26], [-9, 26], [9, -39], [9, 41]].map(
    ([dx, dy]) => ({ dx, dy, align: dx > 0 ? "left" : "right" }),
  );

  /** Names the fp32 models and the front's points where a name covers no other name and no point. */
  function placeNames(points, view) {
    const [x, y] = [view.scale("x"), view.scale("y")];
    const taken = points.map((point) => box(x(point.x) - 6, y(point.y) - 6, 12, 12));
    const clashes = (one) => taken.some((other) =>
      one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom);
    for (const point of points.filter((candidate) => candidate.front || candidate.reference)) {
      const width = 7.2 * [...point.label].length;
      const around = (place) => box(x(point.x) + place.dx - (place.dx > 0 ? 0 : width), y(point.y) + place.dy - 9, width, 13);
      const inside = ({ left, right, top, bottom }) => left > 2 && right < view.width() && top > 0 && bottom < view.height();
      const place = PLACES.find((tried) => inside(around(tried)) && !clashes(around(tried)));
      if (!place) continue;
      Object.assign(point, place, { name: point.label });
      taken.push(around(place));
    }
    return points;
  }

  function box(left, top, width, height) {
    return { left, top, right: left + width, bottom: top + height };
  }

  function specification(axis, title, points) {
    const filled = structuredClone(data.specification);
    const narrow = byId("plot").clientWidth < 520;
    const across = narrow ? axis.title.split(/ (?=\()/) : axis.title;
    for (const { encoding } of filled.layer) {
      encoding.x.title = across;
      encoding.x.axis = { ...encoding.x.axis, labelExpr: axis.labels };
      encoding.x.scale = { ...encoding.x.scale, domain: domain(points, "x", (value) => value * 0.05) };
      encoding.y.title = title;
      encoding.y.scale = { ...encoding.y.scale, domain: domain(points, "y", () => 0.05) };
    }
    return { ...filled, datasets: { points: structuredClone(points) } };
  }

  /** From the lowest bound to the highest, and never of no width. */
  function domain(points, name, margin) {
    const low = Math.min(...points.map((point) => point[`${name}_low`]));
    const high = Math.max(...points.map((point) => point[`${name}_high`]));
    return high > low ? [low, high] : [low - margin(low), high + margin(high)];
  }

  function showTip(handler, event, item, value) {
    const point = item?.datum;
    tip.hidden = value == null || value === "" || !point?.text;
    if (tip.hidden) return;
    tip.replaceChildren(document.createElement("b"), ...point.text.map((line) => document.createElement("div")));
    tip.firstChild.textContent = point.label;
    point.text.forEach((line, index) => { tip.children[index + 1].textContent = line; });
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 8))}px`;
  }

  async function draw() {
    const panel = byId("plot-panel");
    if (!panel) return;
    const [x, y] = [byId("plot-x").value, byId("plot-y").value];
    const values = chosenPoints(panel.value, x, y);
    byId("plot-empty").hidden = values.length > 0;
    byId("plot").hidden = values.length === 0;
    tip.hidden = true;
    if (!values.length) return;
    const turn = ++drawing;
    const result = await vegaEmbed(
      byId("plot"),
      specification(data.axes[x], data.panels[panel.value][y], values),
      { mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false, tooltip: showTip, config: theme() },
    );
    if (turn !== drawing) return result.finalize();
    view?.finalize();
    view = result;
    await result.view.data("points", structuredClone(placeNames(values, result.view))).runAsync();
    result.view.addEventListener("click", (event, item) => item?.datum?.cell !== undefined && find(item.datum.cell));
    byId("plot").dataset.drawn = `${panel.value}|${x}|${y}`;
  }

  // --- Wiring ----------------------------------------------------------------------

  function refresh() {
    readAddress();
    if (table) {
      filterRows();
      sortRows();
    }
    draw();
  }

  if (table) {
    table.addEventListener("click", (event) => {
      const sorter = event.target.closest("[data-sort]");
      if (sorter) return sortBy(sorter);
      const more = event.target.closest(".more");
      if (more) open(more.closest("tr"));
    });
    const filters = byId("filters");
    filters.addEventListener("input", () => { filterRows(); writeAddress(); });
    filters.addEventListener("submit", (event) => event.preventDefault());
    filters.addEventListener("reset", () => setTimeout(() => { filterRows(); writeAddress(); }));
  }
  for (const name of AXES) byId(`plot-${name}`)?.addEventListener("change", () => { writeAddress(); draw(); });
  byId("plot")?.addEventListener("mouseleave", () => { tip.hidden = true; });
  dark.addEventListener("change", draw);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(draw, 200);
  });
  addEventListener("hashchange", refresh);
  refresh();
})();
