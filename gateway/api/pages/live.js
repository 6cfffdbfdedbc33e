// SPDX-License-Identifier: GPL-2.0-or-later
// Live calls.

import { ask, element, repeat } from "./base.js";

/** @type {import("./console.js").Page} */
export const page = {
  path: "live",
  title: "Live calls",
  show(main) {
    const list = element("ul", {});
    main.append(element("h1", {}, "Live calls"), list);
    return repeat(async () => {
      const { calls } = await ask("/calls?live=true");
      list.replaceChildren(
        ...calls.map((call) => element("li", {}, `${call.from_number} → ${call.to_number} ${call.state}`)),
      );
    }, 1000);
  },
};
