"""The data owner's web page: read what is asked, decide, and see what was done. On loopback, for one hospital."""

from fl_utils.deployment.nvflare.page.app import make_app
from fl_utils.deployment.nvflare.page.serving import serve

serve_page = serve  #: Its name outside of this package.
__all__ = ["make_app", "serve", "serve_page"]
