/* Pages of memory, of which some cannot be accessed. */
#ifndef PAGES_H
#define PAGES_H

#include <stddef.h>

size_t page_size(void);

/* Zeros; NULL where there is no memory. */
unsigned char *new_pages(size_t num_bytes);

/* Forbids access to one page; returns 0 where that fails. */
int guard_page(unsigned char *page);

void free_pages(unsigned char *pages, size_t num_bytes);

#endif
