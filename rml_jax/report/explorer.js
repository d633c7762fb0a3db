"use strict";
(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const find = (name) => document.getElementById(`explorer-${name}`);
  const score = find("score"), opacity = find("opacity"), heat = find("heat");
  const switches = [...document.querySelectorAll(".explorer-class")];

  // For each of `length` pixels along a side: the two nearest cells of the grid and the share of the second.
  function weights(length, cells) {
    return Array.from({ length }, (_, pixel) => {
      const place = Math.min(Math.max(((pixel + 0.5) * cells) / length - 0.5, 0), cells - 1);
      const first = Math.floor(place);
      return [first, Math.min(first + 1, cells - 1), place - first];
    });
  }

  // The greatest CAM of each pixel among the classes that are switched on, times 255, and its label.
  function strongest(scene, on) {
    const [height, width] = scene.size, [rows, columns] = scene.grid;
    const values = new Float64Array(height * width), labels = new Uint8Array(height * width);
    const down = weights(height, rows), across = weights(width, columns);
    scene.labels.forEach((label, number) => {
      if (!on.has(label)) return;
      const map = scene.bytes.subarray(number * rows * columns, (number + 1) * rows * columns);
      for (let y = 0, pixel = 0; y < height; y++) {
        const [top, bottom, below] = down[y];
        for (let x = 0; x < width; x++, pixel++) {
          const [left, right, beside] = across[x];
          const upper = map[top * columns + left] * (1 - beside) + map[top * columns + right] * beside;
          const lower = map[bottom * columns + left] * (1 - beside) + map[bottom * columns + right] * beside;
          const value = upper * (1 - below) + lower * below;
          if (value > values[pixel]) {
            values[pixel] = value;
            labels[pixel] = label;
          }
        }
      }
    });
    return { values, labels };
  }

  function heatColor(value) {
    const place = Math.min((value / 255) * (data.heat.length - 1), data.heat.length - 1.000001);
    const first = Math.floor(place), share = place - first;
    return data.heat[first].map((start, i) => start * (1 - share) + data.heat[first + 1][i] * share);
  }

  function draw(scene) {
    const [height, width] = scene.size, pixels = new ImageData(width, height), areas = {};
    const threshold = Number(score.value) * 255, { values, labels } = scene.found;
    for (let pixel = 0; pixel < values.length; pixel++) {
      const label = values[pixel] > threshold ? labels[pixel] : 0;
      if (label) areas[label] = (areas[label] || 0) + 1;
      if (!heat.checked && !label) continue;
      const color = heat.checked ? heatColor(values[pixel]) : data.colors[label];
      pixels.data.set([...color, 255], 4 * pixel);
    }
    scene.canvas.getContext("2d").putImageData(pixels, 0, 0);
    scene.figure.dataset.areas = JSON.stringify(areas);
    scene.text.textContent =
      Object.entries(areas)
        .map(([label, area]) => `${data.names[label]} ${((100 * area) / values.length).toFixed(1)} %`)
        .join(", ") || "background only";
  }

  // Only images in view are drawn; the others when they come into view.
  const visible = new Set();
  function update(classes) {
    find("score-text").textContent = Number(score.value).toFixed(2);
    find("opacity-text").textContent = Number(opacity.value).toFixed(2);
    find("command").textContent = data.command.replaceAll("SCORE", Number(score.value).toFixed(2));
    find("images").style.setProperty("--opacity", opacity.value);
    for (const scene of data.scenes) {
      if (classes) scene.found = null;
      scene.drawn = false;
    }
    visible.forEach(show);
  }

  function show(scene) {
    if (scene.drawn) return;
    const on = new Set(switches.filter((one) => one.checked).map((one) => Number(one.value)));
    scene.found ||= strongest(scene, on);
    draw(scene);
    scene.drawn = true;
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const scene = data.scenes[target.dataset.number];
      if (isIntersecting) {
        visible.add(scene);
        show(scene);
      } else visible.delete(scene);
    }
  }, { rootMargin: "300px" });

  data.scenes.forEach((scene, number) => {
    scene.bytes = Uint8Array.from(atob(scene.cams), (letter) => letter.charCodeAt(0));
    const make = (kind, parent) => parent.appendChild(document.createElement(kind));
    const figure = (scene.figure = make("figure", find("images")));
    figure.dataset.number = number;
    const stack = make("div", figure), image = make("img", stack);
    stack.className = "explorer-stack";
    image.src = scene.image;
    image.alt = scene.name;
    const canvas = (scene.canvas = make("canvas", stack));
    [canvas.height, canvas.width] = scene.size;
    canvas.style.opacity = "var(--opacity)";
    figure.style.width = `${Math.max(scene.size[1], 128)}px`;
    const caption = make("figcaption", figure);
    make("span", caption).textContent = `${scene.name}: `;
    scene.text = make("span", caption);
    watcher.observe(figure);
  });
  score.addEventListener("input", () => update(false));
  opacity.addEventListener("input", () => update(false));
  switches.forEach((one) => one.addEventListener("input", () => update(true)));
  document.getElementsByName("explorer-view").forEach((one) => one.addEventListener("input", () => update(false)));
  update(false);
})();
