// Questions to the server, and answers as errors a person can read.

export class Gone extends Error {}

/** GET api/<path>; throws an Error whose message is for the page. */
export async function ask(path, query = {}) {
  const url = new URL(`api/${path}`, document.baseURI);
  for (const [name, value] of Object.entries(query)) for (const one of [value].flat()) url.searchParams.append(name, one);
  const response = await fetch(url, { headers: { Accept: "application/json" } }).catch(() => {
    throw new Error("Airflow does not answer; trying again");
  });
  if (response.status === 401) throw new Error("Your session has ended; log in to Airflow again");
  if (response.status === 403) throw new Error("You may not see the runs of this DAG");
  if (response.status === 404) throw new Gone("This run is no longer in the store");
  if (!response.ok) throw new Error(`Airflow answers with an error (${response.status}); trying again`);
  return response.json();
}
