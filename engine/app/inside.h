/* inside.h: the model inside this program. */
#ifndef APP_INSIDE_H
#define APP_INSIDE_H

/* The path of this program if a model is inside it, else NULL; *mode: the mode to start in. Fails if
 * the model is cut off. Until the program ends. */
const char *model_inside(const char **mode);

#endif
