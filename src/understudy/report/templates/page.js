(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const narrow = window.matchMedia("(max-width: 640px)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const chosen = new Map();
  let logarithmic = false;

  // Colours come as names of CSS variables: var(--name) is the colour, band(--name) a faint tone of it.
  const colourOf = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const faintOf = (name) => {
    const hex = colourOf(name).slice(1);
    const parts = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},0.16)`;
  };
  const coloured = (value) => {
    if (typeof value === "string") {
      const found = /^(var|band)\((--[\w-]+)\)$/.exec(value);
      return found ? (found[1] === "var" ? colourOf : faintOf)(found[2]) : value;
    }
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item)]));
    }
    return value;
  };

  const axis = (own) => ({
    gridcolor: colourOf("--line"), zerolinecolor: colourOf("--faint"), linecolor: colourOf("--line"),
    tickcolor: colourOf("--line"), ...own,
    title: { ...own.title, font: { size: 12, color: colourOf("--muted") }, standoff: 8 },
    fixedrange: narrow.matches,
  });

  const themed = (figure) => {
    const layout = coloured(figure.layout);
    const margin = narrow.matches ? { ...layout.margin, l: 40, r: 6 } : layout.margin;
    return {
      ...layout, margin, autosize: true,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colourOf("--ink") },
      hoverlabel: {
        bgcolor: colourOf("--card"), bordercolor: colourOf("--faint"), font: { color: colourOf("--ink"), size: 12.5 },
      },
      dragmode: narrow.matches ? false : "zoom",
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    };
  };

  const draw = (figure) => {
    const data = coloured(figure.data);
    const layout = themed(figure);
    const choice = figure.choices[chosen.get(figure.id) ?? 0];
    if (choice) {
      choice.x.forEach((x, index) => { data[index].x = x; });
      layout.xaxis.title.text = choice.title;
    }
    if (logarithmic && figure.id.startsWith("terms-")) layout.yaxis.type = "log";
    const config = {
      responsive: true, displaylogo: false, displayModeBar: narrow.matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    };
    return Plotly.react(figure.id, data, layout, config);
  };
  const drawAll = () => Promise.all(figures.map(draw)).then(() => { root.dataset.drawn = theme(); });

  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const toggle = document.getElementById("theme");
  const nameToggle = () => {
    const other = theme() === "dark" ? "light" : "dark";
    toggle.textContent = other === "dark" ? "Dark" : "Light";
    toggle.setAttribute("aria-label", `Switch to ${other} colours`);
  };
  const themeChanged = () => { nameToggle(); return drawAll(); };
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    themeChanged();
  });
  dark.addEventListener("change", themeChanged);
  narrow.addEventListener("change", drawAll);

  for (const figure of figures) {
    const place = document.querySelector(`[data-choices="${figure.id}"]`);
    if (!place || figure.choices.length < 2) continue;
    const buttons = figure.choices.map((choice, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = choice.label;
      button.setAttribute("aria-pressed", String(index === 0));
      button.addEventListener("click", () => {
        chosen.set(figure.id, index);
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        draw(figure);
      });
      return button;
    });
    place.append(...buttons);
  }
  const scale = document.getElementById("log-terms");
  if (scale) scale.addEventListener("change", () => { logarithmic = scale.checked; drawAll(); });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((box) => { box.open = true; }));

  themeChanged();
})();
