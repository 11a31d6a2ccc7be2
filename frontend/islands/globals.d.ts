declare module "islands:registry" {
  /** Tag name → loader of the file that defines it; made by build.mjs from the files beside app.ts. */
  export const islands: Record<string, () => Promise<unknown>>;
}
