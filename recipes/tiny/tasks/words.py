"""The words that fill the templates."""

# ruff: noqa: SIM905 (a string of words reads better than a list of strings)

FIRST_NAMES = (
    "Ada Ben Carla David Elena Felix Grace Hugo Ines Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Tara Victor "
    "Wendy Yusuf Zoe Amir Bella Chen Dora Emil Fatima Georg Hana Ivan Julia Karl Lina Marco Nina Otto Petra "
    "Ravi"
).split()
SURNAMES = (
    "Adams Baker Costa Diaz Evans Fischer Garcia Hansen Ito Jensen Kumar Lopez Meyer Novak Olsen Patel "
    "Quinn Rossi Silva Tanaka Ueda Vogel Weber Young Ziegler Brown Clark Dubois Ferrari Green Hughes Kowalski"
).split()
CITIES = (
    "Oslo Paris Lima Cairo Berlin Tokyo Madrid Vienna Dublin Athens Lagos Seoul Delhi Quito Prague Warsaw "
    "Lisbon Zurich Milan Boston Denver Sydney Nairobi Hanoi"
).split()
JOBS = (
    "nurse baker pilot teacher farmer lawyer painter chemist plumber singer writer tailor dentist judge"
).split()
COLOURS = "red blue green black white yellow purple orange brown grey".split()
ITEMS = (
    "lamp chair table kettle jacket guitar helmet basket mirror blanket camera bottle ladder pillow".split()
)
PLURALS = "apples pears books coins stamps pencils marbles shells cards stickers beads nuts".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
FUNCTIONS = (
    "scale adjust convert compute change update process apply solve transform measure score rate weigh shift "
    "combine prepare refine derive encode"
).split()
