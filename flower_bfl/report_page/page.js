"use strict";
(() => {
  const PAGE = 50; // entries shown at once
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  const made = (name, text, className) => {
    const element = document.createElement(name);
    if (text !== undefined) element.textContent = text; // never as HTML: it is whatever a run recorded
    if (className) element.className = className;
    return element;
  };

  for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;

  // -- tabs: one stop for Tab, arrows between them

  const choose = (tab) => {
    for (const other of tab.parentElement.children) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      byId(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  };

  for (const list of document.querySelectorAll("[role=tablist]")) {
    const tabs = [...list.children];
    list.hidden = false;
    choose(tabs[0]);
    for (const tab of tabs) tab.addEventListener("click", () => choose(tab));
    list.addEventListener("keydown", (event) => {
      const places = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.length, End: tabs.length };
      if (!(event.key in places)) return;
      const from = tabs.indexOf(document.activeElement);
      let to = from + places[event.key];
      if (event.key === "Home") to = 0;
      if (event.key === "End") to = tabs.length - 1;
      const tab = tabs[(to + tabs.length) % tabs.length];
      choose(tab);
      tab.focus();
      event.preventDefault();
    });
  }

  // -- charts: the table of values says where each x is, and what to read out

  for (const figure of document.querySelectorAll(".chart")) {
    const plot = figure.querySelector(".plot");
    const cursor = figure.querySelector(".cursor");
    const readout = figure.querySelector(".readout");
    const names = [...figure.querySelectorAll("thead th")].map((cell) => cell.textContent);
    const rows = [...figure.querySelectorAll("tbody tr")];
    const places = rows.map((row) => Number(row.dataset.at));
    let now = -1;

    const show = (place) => {
      now = place;
      cursor.setAttribute("d", place < 0 ? "" : `M${places[place]},12V186`);
      if (place < 0) {
        readout.textContent = "";
        return;
      }
      const cells = [...rows[place].cells].map((cell) => cell.textContent);
      const values = cells.slice(1).map((cell, i) => (cell ? `${names[i + 1]} ${cell}` : ""));
      readout.textContent = `${names[0]} ${cells[0]}: ${values.filter(Boolean).join(", ")}`;
    };

    plot.tabIndex = 0;
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * 360;
      const far = places.map((place) => Math.abs(place - x));
      show(far.indexOf(Math.min(...far)));
    });
    plot.addEventListener("pointerleave", () => show(-1));
    plot.addEventListener("blur", () => show(-1));
    plot.addEventListener("keydown", (event) => {
      const last = rows.length - 1;
      const to = {
        ArrowRight: Math.min(now + 1, last), ArrowLeft: now < 0 ? last : Math.max(now - 1, 0),
        Home: 0, End: last, Escape: -1,
      }[event.key];
      if (to === undefined) return;
      show(to);
      event.preventDefault();
    });
  }

  // -- the map of a round

  const map = data.map;
  if (map) {
    const lines = byId("map-lines");
    const slider = byId("map-round");
    const rows = [...byId("map-table").tBodies[0].rows];
    const drawn = Object.keys(map.devices).length > 0;

    const draw = () => {
      const [number, own, sent, leader, barred] = map.rounds[Number(slider.value)];
      slider.setAttribute("aria-valuetext", `round ${number}`);
      byId("map-number").textContent = number;
      byId("map-caption").textContent = number;
      lines.replaceChildren();
      const senders = new Set();
      for (const [kind, groups] of [["own", own], ["data", sent]]) {
        if (!drawn) break;
        groups.forEach((devices, server) => {
          for (const device of devices) {
            const from = map.devices[device];
            const to = map.servers[server];
            if (!from || !to) continue;
            if (kind === "data") senders.add(String(device));
            const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
            line.setAttribute("class", kind);
            line.setAttribute("d", `M${from}L${to}`);
            lines.append(line);
          }
        });
      }
      for (const circle of document.querySelectorAll("[data-device]")) {
        const sends = senders.has(circle.dataset.device);
        circle.classList.toggle("sends", sends);
        circle.nextElementSibling?.classList.toggle("sends", sends && circle.nextElementSibling.matches(".number"));
      }
      for (const square of document.querySelectorAll("[data-server]")) {
        const server = Number(square.dataset.server);
        square.classList.toggle("leader", server === leader);
        square.classList.toggle("barred", barred.includes(server));
      }
      rows.forEach((row, server) => {
        const told = (groups) => (drawn ? (groups[server] ?? []).join(", ") : groups[server] || "");
        row.cells[1].textContent = told(own);
        row.cells[2].textContent = told(sent);
        const roles = [server === leader && "leader", barred.includes(server) && "in quarantine"];
        row.querySelector("small").textContent = roles.filter(Boolean).join(", ");
      });
    };
    slider.addEventListener("input", draw);
    draw();
  }

  // -- the ledger's entries

  const ledger = data.ledger;
  const body = byId("entries");
  if (ledger && body) {
    const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));
    const bytes = { digests: atob(ledger.digests), hashes: atob(ledger.hashes) };
    const hex = (name, place) => {
      let text = "";
      for (let i = 32 * place; i < 32 * place + 32; i++) text += HEX[bytes[name].charCodeAt(i)];
      return text;
    };
    const fields = { round: byId("f-round"), kind: byId("f-kind"), sender: byId("f-sender"), text: byId("f-text") };
    let found = [];
    let first = 0;

    const option = (value, text) => {
      const element = made("option", text);
      element.value = value;
      return element;
    };
    const roundNumbers = [...new Set(ledger.rows.map((row) => row[0]))];
    fields.round.append(...roundNumbers.map((number) => option(number, number)));
    fields.kind.append(...ledger.kinds.map((kind, place) => option(place, kind)));
    const names = [...new Set(ledger.senders.map((sender) => sender[0]))];
    names.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    fields.sender.append(...names.map((name) => option(name, name)));

    const filter = () => {
      const [round, kind, sender] = [fields.round.value, fields.kind.value, fields.sender.value];
      const text = fields.text.value.trim().toLowerCase().replace(/^0x/, "");
      found = [];
      ledger.rows.forEach((row, place) => {
        if (round !== "" && row[0] !== Number(round)) return;
        if (kind !== "" && row[3] !== Number(kind)) return;
        const [name, account] = ledger.senders[row[5]];
        if (sender !== "" && name !== sender) return;
        if (text !== "") {
          const starts = (whole) => whole.startsWith(text);
          if (!starts(account.slice(2)) && !starts(hex("digests", place)) && !starts(hex("hashes", place))) return;
        }
        found.push(place);
      });
      first = 0;
      draw();
    };

    const facts = (place) => {
      const row = ledger.rows[place];
      const [, account, ownKey] = ledger.senders[row[5]];
      const list = made("dl");
      const told = [
        ["digest of the payload", hex("digests", place)],
        ["transaction", `0x${hex("hashes", place)}`],
        ["where", `block ${row[1]}, transaction ${row[2]}`],
        ["account", account + (ownKey ? ", with a key of its own" : "")],
        ["payload", `${row[6].toLocaleString("en")} bytes, ${ledger.places[row[7]]}`],
        ["gas", row[8] === null ? "not known" : row[8].toLocaleString("en")],
      ];
      for (const [name, value] of told) {
        const pair = made("div");
        pair.append(made("dt", name), made("dd", value));
        list.append(pair);
      }
      return list;
    };

    const entry = (place) => {
      const row = ledger.rows[place];
      const line = made("tr");
      const button = made("button", hex("digests", place).slice(0, 8));
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => {
        const open = button.getAttribute("aria-expanded") === "false";
        button.setAttribute("aria-expanded", String(open));
        if (!open) {
          line.nextElementSibling.remove();
          return;
        }
        const cell = made("td", undefined, "rest");
        cell.colSpan = line.cells.length;
        cell.append(facts(place));
        const rest = made("tr");
        rest.append(cell);
        line.after(rest);
      });
      const cells = [
        made("td", row[1], "wide"), made("td", row[2], "wide"), made("td", ledger.kinds[row[3]]), made("td", row[4]),
        made("td", ledger.senders[row[5]][0]), made("td", row[6].toLocaleString("en"), "wide"),
        made("td", row[8] === null ? "–" : row[8].toLocaleString("en"), "wide"), made("td"),
      ];
      cells[7].append(button);
      const head = made("th", row[0]);
      head.scope = "row";
      line.append(head, ...cells);
      return line;
    };

    const draw = () => {
      body.replaceChildren(...found.slice(first, first + PAGE).map(entry));
      byId("found").textContent = `${found.length.toLocaleString("en")} of ${ledger.rows.length.toLocaleString("en")} entries`;
      const last = Math.min(first + PAGE, found.length);
      byId("at").textContent = found.length ? `${first + 1} to ${last}` : "none";
      byId("before").disabled = first === 0;
      byId("after").disabled = last === found.length;
    };

    const form = document.querySelector(".filters");
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", filter);
    form.addEventListener("reset", () => setTimeout(filter)); // the fields are empty only afterwards
    byId("before").addEventListener("click", () => { first = Math.max(0, first - PAGE); draw(); });
    byId("after").addEventListener("click", () => { first += PAGE; draw(); });
    byId("explorer").hidden = false;
    filter();
  }
  performance.mark("ready");
})();
