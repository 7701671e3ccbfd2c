// A picture to draw on: an example with tools (mode "draw"), or a result that clicks correct (mode "correct").
// Gradio gives `element`, `props`, `trigger` and `watch`. Positions are fractions of the picture.
const DRAG = 6; // pixels in the window from which a click is a stroke
const LONGEST = 2000; // positions of a line, as the server takes them
const SVG = "http://www.w3.org/2000/svg";
const one = (selector) => element.querySelector(selector);
const frame = one(".frame"), picture = one("img"), layer = one("svg");
const correcting = props.mode === "correct";
let tool = "points", negative = false; // what is chosen in the bar
let marks = [], undone = []; // drawn on the example, or sent as corrections that are not answered yet
let current = null; // the mark that is being drawn

const place = (event) => {
    const box = picture.getBoundingClientRect();
    const within = (value) => Math.min(Math.max(value, 0), 1);
    return [within((event.clientX - box.left) / box.width), within((event.clientY - box.top) / box.height)];
};

// Drawing.

const shape = (name, attributes, mark) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.setAttribute("class", (mark.negative ? "negative " : "positive ") + mark.tool);
    layer.append(made);
};

const draw = (mark) => {
    const width = picture.naturalWidth, height = picture.naturalHeight;
    const scale = width / (picture.clientWidth || width); // of a pixel in the window
    const at = mark.path.map(([x, y]) => [x * width, y * height]);
    if (mark.tool === "points") {
        shape("circle", { cx: at[0][0], cy: at[0][1], r: 6 * scale }, mark);
    } else if (mark.tool === "box") {
        const [[x0, y0], [x1, y1]] = [at[0], at[at.length - 1]];
        const box = { x: Math.min(x0, x1), y: Math.min(y0, y1), width: Math.abs(x1 - x0), height: Math.abs(y1 - y0) };
        shape("rect", box, mark);
    } else {
        const thick = { brush: mark.width * Math.max(width, height), scribble: 0.02 * Math.min(width, height) };
        const line = at.length > 1 ? at : [at[0], [at[0][0] + 0.01, at[0][1]]];
        const attributes = { points: line.map((position) => position.join(",")).join(" ") };
        if (thick[mark.tool]) attributes["stroke-width"] = thick[mark.tool];
        shape(mark.tool === "outline" && mark !== current ? "polygon" : "polyline", attributes, mark);
    }
};

const redraw = () => {
    layer.setAttribute("viewBox", "0 0 " + (picture.naturalWidth || 1) + " " + (picture.naturalHeight || 1));
    layer.replaceChildren();
    const old = (props.dots || []).map(([x, y, isNot]) => ({ tool: "points", negative: isNot, path: [[x, y]] }));
    const shown = correcting ? [...old, ...marks] : marks.filter((mark) => mark.tool === tool);
    shown.forEach(draw);
    if (current) draw(current);
};

picture.addEventListener("load", redraw);
window.addEventListener("resize", redraw);

frame.addEventListener("contextmenu", (event) => event.preventDefault());

frame.addEventListener("pointerdown", (event) => {
    frame.focus({ preventScroll: true });
    const wanted = event.button === 0 || event.button === 2;
    if (!wanted || !event.isPrimary || picture.hidden || (correcting ? !props.ready : tool === "whole image")) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    current = { tool, negative: negative || event.button === 2 || event.shiftKey, path: [place(event)] };
    current.from = [event.clientX, event.clientY];
    if (tool === "brush") current.width = Number(one(".width").value) / 100;
    redraw();
});

frame.addEventListener("pointermove", (event) => {
    if (!current) return;
    const far = Math.hypot(event.clientX - current.from[0], event.clientY - current.from[1]) >= DRAG;
    if (correcting && far) current.tool = "scribble";
    if (current.tool === "points" || current.path.length >= LONGEST) return;
    if (current.tool === "box") current.path = [current.path[0], place(event)];
    else current.path.push(place(event));
    redraw();
});

frame.addEventListener("pointerup", () => {
    if (!current) return;
    const { from, ...mark } = current;
    current = null;
    const empty = mark.tool === "box" && mark.path.length < 2;
    if (!empty && correcting) send({ do: "mark", ...mark });
    else if (!empty) change([...marks, mark]);
    redraw();
});

frame.addEventListener("pointercancel", () => {
    current = null; // the finger scrolls
    redraw();
});

// Examples: marks stay here until the button "Add example" reads them.

const change = (next, forgotten = []) => {
    marks = next;
    undone = forgotten;
    props.value = marks.length || tool !== "points" ? JSON.stringify({ tool, marks }) : "";
    redraw();
};

const undo = () => {
    const own = marks.filter((mark) => mark.tool === tool);
    if (own.length) change(marks.filter((mark) => mark !== own[own.length - 1]), [...undone, own[own.length - 1]]);
};

const redo = () => {
    if (undone.length) change([...marks, undone[undone.length - 1]], undone.slice(0, -1));
};

const choose = (name) => {
    tool = name;
    element.querySelectorAll("[data-tool]").forEach((button) => {
        button.setAttribute("aria-pressed", button.dataset.tool === tool);
        if (button.dataset.tool === tool) one(".hint").textContent = button.title;
    });
    one(".brush-width").hidden = tool !== "brush";
    change(marks);
};

// Results: actions are sent one after the other, because Gradio does not keep the order of what it gets at once.

let waiting = [], busy = false;

const flush = () => {
    if (busy || !waiting.length) return;
    busy = true;
    frame.classList.add("busy");
    trigger("act", { actions: waiting.splice(0) });
};

const send = (action) => {
    if (action.do === "mark") marks = [...marks, action];
    waiting.push(action);
    flush();
};

const answered = () => {
    busy = false;
    frame.classList.remove("busy");
    marks = waiting.filter((action) => action.do === "mark");
    flush();
};

const toggle = (isNot) => {
    negative = isNot;
    one("[data-sign=more]").setAttribute("aria-pressed", !negative);
    one("[data-sign=not]").setAttribute("aria-pressed", negative);
};

// The bar and the keyboard.

element.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.tool) choose(button.dataset.tool);
    else if (button.dataset.sign) toggle(button.dataset.sign === "not");
    else if (correcting && button.dataset.do) send({ do: button.dataset.do });
    else if (button.dataset.do === "undo") undo();
    else if (button.dataset.do === "clear") change([]);
});

const isTyping = (target) => {
    const field = target.closest("input, textarea, select, [contenteditable=true], [role=listbox], [role=slider]");
    return Boolean(field) && !["checkbox", "radio", "button", "file"].includes(field.type);
};

const KEYS = { ArrowRight: "next", ArrowLeft: "previous", u: "undo", r: "redo", x: "none", e: "use", n: "not" };

document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey || isTyping(event.target)) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const own = element.contains(document.activeElement);
    let action = null;
    if (event.ctrlKey || event.metaKey) action = key === "y" || (key === "z" && event.shiftKey) ? "redo" : key === "z" ? "undo" : null;
    else if (correcting && !event.target.closest("[role=radio], [type=radio]")) action = KEYS[key];
    if (!correcting) {
        if (!own || !action) return; // the keys belong to the result unless the example has the focus
        event.preventDefault();
        event.stopImmediatePropagation();
        return action === "undo" ? undo() : redo();
    }
    if (action === "not") toggle(!negative);
    else if (action && one("[data-do=" + action + "]")?.disabled === false) send({ do: action });
    else if (!action && !event.ctrlKey && !event.metaKey && key === "f") document.querySelector("#find")?.click();
    else if (!action && !event.ctrlKey && !event.metaKey && key >= "1" && key <= "9" && props.classes > 1) send({ do: "class", index: Number(key) - 1 });
    else return;
    event.preventDefault();
});

// Files that are dropped or pasted go the way of the button that loads them.

const load = (files) => {
    const input = document.querySelector(props.upload)?.parentElement.querySelector("input[type=file]");
    const images = [...files].filter((file) => file.type.startsWith("image/"));
    if (!input || !images.length) return false;
    const carried = new DataTransfer();
    images.slice(0, correcting ? images.length : 1).forEach((file) => carried.items.add(file));
    input.files = carried.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
};

element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
    event.preventDefault();
    load(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
    if (!isTyping(event.target) && element.matches(":hover") && load(event.clipboardData.files)) event.preventDefault();
});

// What the server says.

const show = () => {
    picture.hidden = !props.picture;
    one(".empty").hidden = Boolean(props.picture);
    if (props.picture && picture.getAttribute("src") !== props.picture) picture.src = props.picture;
    frame.classList.toggle("ready", correcting ? Boolean(props.ready) : Boolean(props.picture));
    if (correcting) {
        one(".title").textContent = props.title || "";
        for (const name of Object.keys(props.enabled || {})) one("[data-do=" + name + "]").disabled = !props.enabled[name];
    }
    redraw();
};

watch(["picture", "title", "enabled", "dots", "ready"], show);
if (correcting) watch(["turn"], () => { answered(); show(); });
else watch(["turn"], () => change([]));
if (correcting) toggle(false);
else choose("points");
show();
