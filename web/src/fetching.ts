// What is fetched beside the stream: again whenever `key` changes, at most so often.

import { useEffect, useRef, useState } from "preact/hooks";
import { api } from "./api";

export interface Fetched<T> {
  data: T | null;
  error: string;
}

export function useFetched<T>(path: string, key: unknown, everyMs = 1_500): Fetched<T> {
  const [state, setState] = useState<Fetched<T> & { path: string }>({ path, data: null, error: "" });
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const last = useRef(0);
  const current = useRef(path);
  current.current = path;

  useEffect(() => {
    const ask = async () => {
      timer.current = undefined;
      last.current = performance.now();
      try {
        const data = await api.get<T>(path);
        if (current.current === path) setState({ path, data, error: "" });
      } catch (error) {
        if (current.current === path) setState((old) => ({ path, data: old.path === path ? old.data : null, error: (error as Error).message }));
      }
    };
    if (timer.current === undefined) {
      timer.current = setTimeout(ask, Math.max(0, last.current + everyMs - performance.now()));
    }
  }, [path, key]);

  useEffect(
    () => () => {
      clearTimeout(timer.current);
      timer.current = undefined;
      last.current = 0;
    },
    [path],
  );
  return state.path === path ? state : { data: null, error: "" };
}
