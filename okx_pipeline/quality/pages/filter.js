// Shows the validations that the form asks for. Without it a page shows all of them.
(() => {
  const form = document.querySelector("#filter");
  const fields = [...form.querySelectorAll("select")];
  const days = [...document.querySelectorAll(".day")];
  const rows = new Map(days.map((day) => [day, [...day.querySelectorAll("tr[data-store]")]]));
  const months = [...document.querySelectorAll(".months tr[data-symbols]")];
  const address = new URLSearchParams(location.search);
  for (const field of fields) {
    const asked = address.get(field.name);
    const option = [...field.options].find((each) => each.dataset.name === asked || each.value === asked);
    if (asked && option) field.value = option.value;
  }

  const has = (list, number) => list === "*" || (list ?? "").split(" ").includes(number);
  const matches = (data, { symbol, store, outcome }) => {
    if (store && data.store !== store) return false;
    if (symbol && !has(data.symbols, symbol)) return false;
    const is = (kind) => (symbol ? has(data[kind], symbol) : Boolean(data[kind]));
    // Of a month nobody knows; some of it may have passed.
    if (outcome === "passed") return !data.store || (!is("error") && !is("warning"));
    return !outcome || is(outcome);
  };

  const show = () => {
    const wanted = Object.fromEntries(fields.map((field) => [field.name, field.value]));
    const filtered = Object.values(wanted).some(Boolean);
    let found = 0;
    for (const day of days) {
      let here = 0;
      for (const row of rows.get(day)) {
        row.hidden = !matches(row.dataset, wanted);
        here += !row.hidden;
      }
      day.hidden = !here;
      day.open = filtered || "open" in day.dataset;
      found += here;
    }
    for (const each of document.querySelectorAll(".replaced")) {
      each.hidden = !each.querySelector("tr[data-store]:not([hidden])");
    }
    for (const each of document.querySelectorAll("section")) each.hidden = !each.querySelector(".day:not([hidden])");
    // A month has validations of both stores.
    for (const month of months) month.hidden = !matches(month.dataset, { ...wanted, store: "" });
    const elsewhere = months.length ? ", more may be on the pages of the months below" : "";
    document.querySelector("#found").textContent = filtered ? `${found} on this page${elsewhere}` : "";
    const search = new URLSearchParams();
    for (const field of fields) {
      const chosen = field.selectedOptions[0];
      if (field.value) search.set(field.name, chosen.dataset.name ?? field.value);
    }
    const query = filtered ? `?${search}` : "";
    for (const link of document.querySelectorAll("a.filtered")) link.search = query;
    history.replaceState(null, "", `${location.pathname}${query}${location.hash}`);
  };

  const reveal = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    target.open = true;
    target.scrollIntoView();
  };

  form.hidden = false;
  form.addEventListener("change", show);
  form.addEventListener("reset", () => setTimeout(show));
  addEventListener("hashchange", reveal);
  show();
  reveal();
})();
